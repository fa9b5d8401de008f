"""The service of one machine as it runs: a Ray, two replicas, real requests. One session; stopped whatever happens."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from server.conftest import free_port, photo

pytest.importorskip("ray", reason="the service's extra is not installed")

import httpx

from clipspect.server.limits import Limits
from clipspect.server.service import start_service, stop_service
from clipspect.server.settings import ServiceSettings

pytestmark = pytest.mark.integration

PATIENCE_S = 60


@pytest.fixture(scope="module")
def address(small_model, tmp_path_factory):
    port = free_port()
    settings = ServiceSettings(
        models=(str(small_model),),
        references=tmp_path_factory.mktemp("references"),
        limits=Limits(images=4),
        replicas=2,
        cpus=0.5,
        batch=8,
        queue=16,
        time_limit=30,
    )
    try:
        start_service(settings, host="127.0.0.1", port=port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop_service()


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as made:
        yield made


def ask(client, number: int, **fields):
    return client.post(
        "/v1/detect",
        data={"object": "plate", **fields},
        files=_files(number),
    )


def _files(number: int) -> dict:
    return {"images": ("a.png", photo(number), "image/png")}


def test_the_service_is_ready_and_answers_each_with_its_own(client):
    for _ in range(10):  # each probe waits a while for a replica; a busy machine may need several
        answer = client.get("/readyz").json()
        if answer == {"status": "ready"}:
            break
    assert answer == {"status": "ready"}

    def one(number: int):
        return number, ask(client, number)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(32)))
    for number, response in answers:
        assert response.status_code == 200, response.text
        assert [result["content_hash"] for result in response.json()["results"]] == [
            sha256(photo(number)).hexdigest()
        ]
    assert max(response.json()["batched"] for _, response in answers) > 1


def test_every_replica_finds_kept_references(client):
    asked = {"object": "plate", "method": "dual-image"}
    good = {"images": ("a.png", photo(30, blot=False), "image/png")}
    kept = client.post("/v1/references", data=asked, files=good).json()
    scores = {
        ask(client, 1, method="dual-image", references_id=kept["id"]).json()["results"][0]["score"]
        for _ in range(6)
    }
    assert len(scores) == 1


def test_refusals_keep_their_shape_behind_ray(client):
    too_many = [("images", ("a.png", photo(number), "image/png")) for number in range(5)]
    for response, status in [
        (client.post("/v1/detect", data={"object": "plate"}, files=too_many), 413),
        (ask(client, 1, method="winclip+"), 422),
        (ask(client, 1, model="tiny"), 422),
        (client.get("/nothing"), 404),
    ]:
        assert response.status_code == status
        assert set(response.json()["error"]) == {"code", "message", "retryable", "details"}
    text = client.get("/metrics").text
    assert 'clipspect_requests_total{path="/v1/detect",status="413"} 1.0' in text
    assert "clipspect_batched_requests_bucket" in text


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="replicas are found in /proc")
def test_a_killed_replica_costs_a_retry_and_never_a_hang(client):
    answers: list[int] = []
    stop = threading.Event()

    def keep_asking(first: int) -> None:
        number = first
        while not stop.is_set():
            response = ask(client, number)
            answers.append(response.status_code)
            if response.status_code == 200:
                assert response.json()["results"][0]["content_hash"] == sha256(photo(number)).hexdigest()
            else:
                assert response.json()["error"]["retryable"], response.text
                assert "retry-after" in response.headers
            number += 4

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, first) for first in range(4)]
        time.sleep(1)
        os.kill(one_replica(), 9)
        before = len(answers)
        until = time.monotonic() + PATIENCE_S
        while len(answers) < before + 20 and time.monotonic() < until:
            time.sleep(0.1)
        stop.set()
        for future in asking:
            future.result(timeout=PATIENCE_S)
    assert len(answers) >= before + 20, "somebody hangs"
    assert set(answers) <= {200, 503}
    assert answers[-1] == 200
    assert ask(client, 1).status_code == 200


def test_a_client_that_leaves_is_told_from_one_that_was_answered(client, address):
    host, _, port = address.removeprefix("http://").partition(":")
    request = httpx.Request("POST", f"{address}/v1/detect", data={"object": "plate"}, files=_files(1))
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(f"POST /v1/detect HTTP/1.1\r\n{head}\r\n".encode() + request.read())
    until = time.monotonic() + PATIENCE_S
    given_up = 'clipspect_requests_total{path="/v1/detect",status="499"} 1.0'
    while given_up not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert ask(client, 1).status_code == 200


def one_replica() -> int:
    """The process of a replica, found by the name that Ray gives it, among this session's own children."""
    replicas = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:clipspect:inspector") and own(int(folder.name)):
            replicas.append(int(folder.name))
    return min(replicas)


def own(process: int) -> bool:
    while process > 1:
        if process == os.getpid():
            return True
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        process = int(stat.rsplit(")", 1)[1].split()[1])
    return False
