"""`clipspect serve` with one replica: in this process, without Ray, with the same batches and refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from server.conftest import free_port, photo

pytest.importorskip("fastapi", reason="the service's extra is not installed")

import httpx

from clipspect.server.limits import Limits
from clipspect.server.service import start_service, stop_service
from clipspect.server.settings import ServiceSettings

pytestmark = pytest.mark.integration

PATIENCE_S = 60


@pytest.fixture(scope="module")
def client(small_model, tmp_path_factory):
    port = free_port()
    settings = ServiceSettings(
        models=(str(small_model),),
        references=tmp_path_factory.mktemp("references"),
        limits=Limits(images=4),
        batch=8,
        queue=32,
        time_limit=30,
    )
    try:
        start_service(settings, host="127.0.0.1", port=port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as made:
            yield made
    finally:
        stop_service()


def ask(client, number: int, **fields):
    files = {"images": ("a.png", photo(number), "image/png")}
    return client.post("/v1/detect", data={"object": "plate", **fields}, files=files)


def test_each_request_gets_its_own_answer_and_waiting_ones_are_scored_together(client):
    assert client.get("/readyz").json() == {"status": "ready"}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: (number, ask(client, number)), range(32)))
    for number, response in answers:
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        assert result["content_hash"] == sha256(photo(number)).hexdigest()
    together = [response.json()["batched"] for _, response in answers]
    assert 1 < max(together) <= 8


def test_a_wrong_request_does_not_touch_its_neighbors(client):
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: ask(client, n, method="winclip+" if n % 2 else "anoclip"), range(8))
        )
    assert [response.status_code for response in answers] == [200, 422] * 4


def test_stored_references_are_found(client):
    good = {"images": ("a.png", photo(30, blot=False), "image/png")}
    kept = client.post("/v1/references", data={"object": "plate", "method": "dual-image"}, files=good).json()
    assert ask(client, 1, method="dual-image", references_id=kept["id"]).status_code == 200


def test_the_service_of_one_process_imports_no_ray():
    code = (
        "import sys, clipspect.server.service, clipspect.server.local, clipspect.server.app, clipspect.ui.host;"
        "assert not {'ray', 'torch', 'gradio'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
