"""The service's own web server: where it listens, what it says of itself, and heads without end."""

from __future__ import annotations

import http.client
import socket

import pytest

from server.conftest import free_port

pytest.importorskip("uvicorn", reason="the service's extra is not installed")

from clipspect.errors import UsageError
from clipspect.server.http_server import HttpServer

HOST = "127.0.0.1"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port():
    free = free_port()
    listener = HttpServer(app, host=HOST, port=free)
    yield free
    listener.stop()
    with pytest.raises(OSError):
        socket.create_connection((HOST, free), timeout=5)


def test_it_answers_and_does_not_say_what_it_is(port):
    session = http.client.HTTPConnection(HOST, port, timeout=10)
    session.request("GET", "/")
    response = session.getresponse()
    assert (response.status, response.read()) == (200, b"ok")
    assert response.getheader("server") is None


def test_a_head_without_end_is_cut_off(port):
    line = b"x-more: " + b"a" * 1000 + b"\r\n"
    with socket.create_connection((HOST, port), timeout=10) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nhost: here\r\n")
        with pytest.raises(OSError):  # the connection is closed long before all of it was sent
            endless.sendall(line * 50_000)


def test_a_port_that_is_taken_is_said(port):
    with pytest.raises(UsageError, match=f"port {port}"):
        HttpServer(app, host=HOST, port=port)
