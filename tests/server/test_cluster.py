"""The same service on a cluster: Ray's proxies, a gateway and replicas, from the settings of docs/service.yaml."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from server.conftest import free_port, photo

pytest.importorskip("ray", reason="the service's extra is not installed")

import httpx

from clipspect.server.deployment import RayBackend, build
from clipspect.server.requests import InspectRequest
from clipspect.server.responses import Answer
from clipspect.server.service import RAY_ENVIRONMENT, stop_service
from clipspect.server.settings import ServiceSettings, read_settings

pytestmark = pytest.mark.integration

CONFIG = Path(__file__).parents[2] / "docs" / "service.yaml"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def address(small_model, tmp_path_factory):
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    port = free_port()
    (application,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["applications"]
    own = {"models": [str(small_model)], "references": str(tmp_path_factory.mktemp("kept")), "replicas": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            ray.init(address="local", num_cpus=1, include_dashboard=False)
            serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
            serve.run(build({**application["args"], **own}), name="clipspect", route_prefix="/")
            yield f"http://127.0.0.1:{port}"
        finally:
            stop_service()


def test_a_gateway_behind_rays_proxies_answers_and_refuses_alike(address):
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        assert client.get("/readyz").json() == {"status": "ready"}

        def ask(number: int, **fields: str) -> httpx.Response:
            files = {"images": ("a.png", photo(number), "image/png")}
            return client.post("/v1/detect", data={"object": "plate", **fields}, files=files)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(16)))
        for number, response in enumerate(answers):
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            assert result["content_hash"] == sha256(photo(number)).hexdigest()
        for response, status in [(ask(1, method="winclip+"), 422), (client.get("/nothing"), 404)]:
            assert response.status_code == status
            assert set(response.json()["error"]) == {"code", "message", "retryable", "details"}
        assert 'path="/v1/detect",status="200"} 16.0' in client.get("/metrics").text


def test_a_call_nobody_waits_for_is_cancelled_on_its_replica():
    class Call:
        def __init__(self) -> None:
            self.answer = asyncio.get_running_loop().create_future()
            self.cancelled = False

        def __await__(self):
            return self.answer.__await__()

        def cancel(self) -> None:
            self.cancelled = True

    class Replicas:
        """A handle as Ray gives it."""

        def __init__(self) -> None:
            self.calls: list[Call] = []
            self.detect = self

        def remote(self, *_: object) -> Call:
            self.calls.append(Call())
            return self.calls[-1]

    async def scenario() -> list[bool]:
        replicas = Replicas()
        backend = RayBackend(replicas, ServiceSettings())
        request = InspectRequest((photo(1),), "plate", ("anoclip",), "tiny")
        asking = [asyncio.create_task(backend.detect(request, frozenset(), 60)) for _ in range(2)]
        await asyncio.sleep(0.01)
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        replicas.calls[1].answer.set_result([Answer("w", [], 1, 0.0)])
        assert (await asking[1]).weights == "w"
        await asyncio.sleep(0.01)
        return [call.cancelled for call in replicas.calls]

    assert asyncio.run(scenario()) == [True, False]


def test_the_cluster_config_is_one_ray_and_the_service_understand():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    (application,) = config.applications
    assert application.import_path == "clipspect.server.deployment:build"
    settings = read_settings(application.args)
    deployments = {node.name: node for node in _as_ray_builds(application.args)}
    assert set(deployments) == {"gateway", "inspector"}
    assert deployments["inspector"].num_replicas == settings.replicas == 2
    assert deployments["inspector"].max_ongoing_requests == 4, "two calls that score, and two others"
    assert deployments["inspector"].max_queued_requests == settings.admitted == 2 * 2 * 16 + 64
    assert config.http_options.host == "127.0.0.1"


def _as_ray_builds(args: dict) -> list:
    """The deployments of the application, made the way Ray makes it from a config file."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.build_app import build_app

    application = call_user_app_builder_with_args_if_necessary(build, args)
    return build_app(application, name="clipspect", default_runtime_env={}).deployments
