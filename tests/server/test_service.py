"""The routes: what is answered, what is refused, and that every refusal has one shape."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from hashlib import sha256

import numpy as np
import pytest

from server.conftest import photo, picture_of

pytest.importorskip("fastapi", reason="the service's extra is not installed")

from clipspect.errors import UsageError
from clipspect.server.app import create_app
from clipspect.server.limits import Limits
from clipspect.server.settings import API_KEY_VARIABLE, ServiceSettings

KEY = "a key long enough to be one"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(response, status: int, code: str) -> dict:
    """The one shape of errors, with this status and code."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "retryable", "details"}
    assert body["error"]["code"] == code
    assert body["error"]["retryable"] == (status in (429, 503))
    assert ("retry-after" in response.headers) == (status in (429, 503))
    return body["error"]


def files(*images: bytes, name: str = "images") -> list:
    return [(name, (f"{number}.png", data, "image/png")) for number, data in enumerate(images)]


def test_multipart_and_json_get_one_answer(client):
    data = photo(1)
    by_form = client.post("/v1/detect", data={"object": "plate"}, files=files(data)).json()
    by_json = client.post("/v1/detect", json={"object": "plate", "images": [encoded(data)]}).json()
    assert by_form["results"] == by_json["results"]
    (result,) = by_form["results"]
    assert result["content_hash"] == sha256(data).hexdigest()
    assert (result["width"], result["height"], result["error"]) == (80, 60, None)
    assert 0 <= result["score"] <= 1
    assert (result["verdict"], result["threshold"], result["threshold_source"]) == ("undecided", None, "none")
    assert 0 <= result["raw_score"] <= 1


def test_thresholds_of_the_request_decide(client):
    asked = {"object": "plate", "threshold": "0.01"}
    (result,) = client.post("/v1/detect", data=asked, files=files(photo(1))).json()["results"]
    assert (result["flag"], result["verdict"], result["threshold"]) == (True, "flagged", 0.01)
    assert result["regions"]


def test_pictures_come_where_they_are_asked_for(client):
    asked = {"object": "plate", "include": ["overlay", "map"]}
    (result,) = client.post("/v1/detect", data=asked, files=files(photo(1))).json()["results"]
    overlay, score_map = (picture_of(base64.b64decode(result[name])) for name in ("overlay", "map"))
    assert overlay.shape == (60, 80, 3)
    assert score_map.shape == (60, 80)
    assert 0 < score_map.max() / 65535 <= 1
    assert np.ptp(score_map) > 0


def test_references_are_sent_along_or_kept(client):
    good = [photo(number, blot=False) for number in (20, 21)]
    asked = {"object": "plate", "method": "dual-image"}
    kept = client.post("/v1/references", data=asked, files=files(*good)).json()
    assert kept["count"] == 2
    by_id = client.post("/v1/detect", data={**asked, "references_id": kept["id"]}, files=files(photo(1)))
    along = client.post("/v1/detect", data=asked, files=files(photo(1)) + files(*good, name="references"))
    assert by_id.json()["results"][0]["score"] == pytest.approx(along.json()["results"][0]["score"], abs=1e-6)
    unknown = {**asked, "references_id": "0" * 32}
    refused(client.post("/v1/detect", data=unknown, files=files(photo(1))), 404, "unknown_references")
    both = files(photo(1)) + files(*good, name="references")
    refused(
        client.post("/v1/detect", data={**asked, "references_id": kept["id"]}, files=both), 422, "invalid"
    )


def test_a_damaged_image_is_a_result_with_an_error_unless_it_is_all(client):
    good, damaged = photo(1), photo(2)[:300]
    answer = client.post("/v1/detect", data={"object": "plate"}, files=files(good, damaged)).json()
    assert [result["error"] is None for result in answer["results"]] == [True, False]
    assert answer["results"][1]["score"] is None
    error = refused(
        client.post("/v1/detect", data={"object": "plate"}, files=files(damaged)),
        422,
        "unreadable_image",
    )
    assert error["details"][0]["field"] == "images.0"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"images": []}, "images"),
        ({"images": ["%%%"]}, "images.0"),
        ({"images": ["/etc/passwd"]}, "images.0"),
        ({"images": ["https://example.com/a.png"]}, "images.0"),
        ({"images": [{"path": "a.png"}]}, "images.0"),
        ({"object": ""}, "object"),
        ({"object": "x" * 81}, "object"),
        ({"threshold": 2}, "threshold"),
        ({"threshold": "NaN"}, "threshold"),
        ({"references_id": "../../etc/passwd"}, "references_id"),
        ({"include": ["everything"]}, "include.0"),
        ({"weights": "random"}, "weights"),
        ({"pixel_threshold": 0.5}, "pixel_threshold"),
    ],
)
def test_wrong_fields_are_named_and_their_content_is_not_repeated(client, body, field):
    asked = {"object": "plate", "images": [encoded(photo(1))], **body}
    error = refused(client.post("/v1/detect", json=asked), 422, "invalid")
    assert field in [detail["field"] for detail in error["details"]]
    assert encoded(photo(1))[:40] not in json.dumps(error)


@pytest.mark.parametrize("what", ["method", "model"])
def test_unknown_names_load_nothing(client, backend, what):
    for name in ("/etc/passwd", "https://example.com/model", "hf-hub:someone/something", "pickle.pt"):
        asked = {"object": "plate", what: name}
        error = refused(
            client.post("/v1/detect", data=asked, files=files(photo(1))), 422, "impossible_request"
        )
        assert "there are" in error["message"]
    assert not backend.engine._detectors


def test_an_object_that_says_nothing_is_refused(client):
    refused(
        client.post("/v1/detect", data={"object": "_ _"}, files=files(photo(1))), 422, "impossible_request"
    )


def test_kinds_are_told_by_content_and_names_are_ignored(client):
    lying = [("images", ("photo.jpg", b"<?php system('id');", "image/jpeg"))]
    refused(client.post("/v1/detect", data={"object": "plate"}, files=lying), 415, "not_an_image")
    honest = [("images", ("../../etc/cron.d/evil.php", photo(1), "text/html"))]
    assert client.post("/v1/detect", data={"object": "plate"}, files=honest).status_code == 200


def test_other_bodies_are_415(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        response = client.post("/v1/detect", content=b"object=plate", headers={"content-type": kind})
        refused(response, 415, "unsupported_media_type")


def test_malformed_bodies_are_422(client):
    refused(
        client.post("/v1/detect", content=b"{", headers={"content-type": "application/json"}), 422, "invalid"
    )
    no_boundary = {"content-type": "multipart/form-data"}
    refused(client.post("/v1/detect", content=b"--x", headers=no_boundary), 422, "malformed_form")
    twice = [("object", (None, "a")), ("object", (None, "b")), *files(photo(1))]
    refused(client.post("/v1/detect", files=twice), 422, "invalid")


def test_limits_are_413(service):
    data = photo(1)
    client = service(limits=Limits(images=1, references=1, pixels=4800, body_mb=0.1))
    asked = {"object": "plate"}
    assert client.post("/v1/detect", data=asked, files=files(data)).status_code == 200
    refused(client.post("/v1/detect", data=asked, files=files(data, data)), 413, "too_many")
    refused(client.post("/v1/detect", data=asked, files=files(*[data] * 3)), 413, "too_many")
    large = files(photo(1, size=(61, 80)))
    refused(client.post("/v1/detect", data=asked, files=large), 413, "too_many_pixels")
    refused(client.post("/v1/detect", data=asked, files=files(bytes(100_001))), 413, "too_large")
    nameless = client.post("/v1/detect", files=[("object", (None, "plate")), ("images", (None, data))])
    assert "with a file name" in refused(nameless, 413, "too_large")["message"]


def test_a_body_without_a_length_is_measured_while_it_comes(service):
    client = service(limits=Limits(body_mb=0.1))
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield b" " * 10_000

    response = client.post("/v1/detect", content=endless(), headers={"content-type": "application/json"})
    refused(response, 413, "too_large")


def test_the_api_key_is_asked_for_wherever_images_and_figures_are(service, tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    client = service(api_key_file=path)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
        for method, route in [
            ("POST", "/v1/detect"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/no"),
        ]:
            response = client.request(method, route, headers=headers)
            refused(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
    shown = {"authorization": f"Bearer {KEY}"}
    answer = client.post("/v1/detect", data={"object": "plate"}, files=files(photo(1)), headers=shown)
    assert answer.status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_a_key_that_is_easily_guessed_is_refused_at_the_start(service, tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "1234")
    with pytest.raises(UsageError, match="at least 16"):
        ServiceSettings().api_keys()
    with pytest.raises(UsageError, match="cannot be read"):
        ServiceSettings(api_key_file=tmp_path / "missing").api_keys()


def test_cross_origin_requests_get_no_permission(client):
    origin = {"origin": "https://example.com", "access-control-request-method": "POST"}
    preflight = client.options("/v1/detect", headers=origin)
    refused(preflight, 405, "method_not_allowed")
    answer = client.get("/v1/models", headers=origin)
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_routing_errors_have_the_shape_too(client):
    refused(client.get("/nothing/here"), 404, "not_found")
    refused(client.get("/v1/detect"), 405, "method_not_allowed")


def test_more_than_may_wait_are_429(service, backend):
    client = service(batch=1, queue=0)  # two are admitted: one being scored, one filling the next batch
    held, let_go = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        held.release()
        let_go.wait(20)

    backend.hold = hold
    answers: list[int] = []
    asked = {"data": {"object": "plate"}, "files": files(photo(1))}
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/detect", **asked).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        assert held.acquire(timeout=20)
    refused(client.post("/v1/detect", **asked), 429, "too_many_requests")
    assert client.get("/healthz").status_code == 200
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert answers == [200, 200]
    assert client.post("/v1/detect", **asked).status_code == 200


def test_the_time_limit_ends_a_request(service, backend):
    client = service(time_limit=0.2)
    let_go = threading.Event()
    backend.hold = lambda: let_go.wait(1)
    response = client.post("/v1/detect", data={"object": "plate"}, files=files(photo(1)))
    let_go.set()
    refused(response, 503, "time_limit")


def test_a_client_that_leaves_is_given_up_at_once(backend, small_model):
    """A client that leaves after a whole request cancels the computation."""

    async def scenario() -> list[str]:
        seen: list[str] = []
        asked, gone = asyncio.Event(), asyncio.Event()

        async def detect(request, include, seconds):
            asked.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("given up")
                raise

        backend.detect = detect
        app = create_app(backend, ServiceSettings(models=(str(small_model),)))
        body = json.dumps({"object": "plate", "images": [encoded(photo(1))]}).encode()
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            seen.append(message["type"])

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/detect", "raw_path": b"/v1/detect",
                 "query_string": b"", "root_path": "", "headers": headers, "http_version": "1.1",
                 "scheme": "http", "server": ("here", 80), "client": ("there", 1)}  # fmt: skip
        async with asyncio.timeout(20):
            request = asyncio.create_task(app(scope, receive, send))
            await asked.wait()
            gone.set()
            await request
        return seen

    assert asyncio.run(scenario()) == ["given up"]


def test_not_ready_is_503(client, backend, monkeypatch):
    monkeypatch.setattr("clipspect.server.app.READY_S", 0.05)
    monkeypatch.setattr(backend, "catalogue", lambda: asyncio.sleep(10))
    refused(client.get("/readyz"), 503, "not_ready")
    assert client.get("/healthz").status_code == 200


def test_a_bug_is_a_500_of_the_same_shape_that_tells_nothing(client, backend, monkeypatch, caplog):
    monkeypatch.setattr(backend.engine, "answer", lambda pending: 1 / 0)
    error = refused(
        client.post("/v1/detect", data={"object": "plate"}, files=files(photo(1))), 500, "internal"
    )
    assert "zero" not in json.dumps(error)
    assert "ZeroDivisionError" in caplog.text


def test_the_log_holds_neither_images_nor_names(client, caplog):
    data = photo(1)
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/detect", data={"object": "secret part"}, files=files(data))
        client.post("/v1/detect", json={"object": "secret part", "images": [encoded(data)]})
        client.post("/v1/detect", json={"object": "secret part", "images": [encoded(data) + "%"]})
        client.get("/secret/path")
    own = [record.getMessage() for record in caplog.records if record.name.startswith("clipspect")]
    assert len(own) == 4
    assert not any("secret" in line or encoded(data)[:16] in line or "0.png" in line for line in own)


def test_metrics_count_what_was_answered(client):
    client.post("/v1/detect", data={"object": "plate"}, files=files(photo(1), photo(2)))
    client.post("/v1/detect", data={"object": "plate"}, files=files(b"no image"))
    client.get("/some/path/of/a/stranger")
    text = client.get("/metrics").text
    assert 'clipspect_requests_total{path="/v1/detect",status="200"} 1.0' in text
    assert 'clipspect_requests_total{path="/v1/detect",status="415"} 1.0' in text
    assert 'clipspect_images_total{method="anoclip"' in text
    assert 'path="other",status="404"' in text
    assert "stranger" not in text


def test_models_are_listed_with_limits(client, small_model):
    listed = client.get("/v1/models").json()
    assert [model["name"] for model in listed["models"]] == [str(small_model)]
    methods = {method["name"]: method for method in listed["methods"]}
    assert not methods["anoclip"]["accepts_references"]
    assert methods["dual-image"]["accepts_references"]
    assert listed["limits"]["images"] == 16
