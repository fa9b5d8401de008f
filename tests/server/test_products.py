"""Products of the service: profiles that it keeps, judges with as `detect --profile` does, and counts."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import httpx
import numpy as np
import pytest

import clipspect
from clipspect.config import DetectorConfig
from clipspect.errors import ProfileError, UsageError
from clipspect.server.engine import make_engine
from clipspect.server.requests import InspectRequest, PendingRequest
from clipspect.server.settings import ServiceSettings, read_settings
from helpers.images import plate
from server.conftest import free_port, photo
from server.test_service import refused

KEY, OTHER = "a key of 20 letters!", "another key, longer!"


@pytest.fixture(scope="session")
def profile(small_model):
    detector = clipspect.load("dual-image", str(small_model), device="cpu")
    made, _ = clipspect.create_profile(
        detector, [plate(n) for n in range(50, 56)], "plate", "mine", threshold=0.4
    )
    return made


def put(client, profile, name: str = "plate-7", **options):
    return client.put(f"/v1/products/{name}", content=profile.to_bytes(), **options)


def send(client, **fields):
    images = [("images", (f"part {n}.png", photo(n, blot=n < 2), "image/png")) for n in range(4)]
    return client.post("/v1/detect", data=fields, files=images)


def test_a_stored_profile_judges_as_in_python(client, profile):
    stored = put(client, profile)
    assert stored.status_code == 200, stored.text
    answer = send(client, product="plate-7").json()
    renamed = type(profile)(**{**profile.__dict__, "name": "plate-7"})
    product = clipspect.load_product(renamed)
    expected = product.detect([photo(n, blot=n < 2) for n in range(4)])
    for one, detection in zip(answer["results"], expected, strict=True):
        assert one["score"] == pytest.approx(detection.score, abs=1e-6)
        assert one["verdict"] == detection.verdict
        assert one["threshold"] == 0.4
        assert one["profile"] == detection.profile == stored.json()["profile"]
    assert [one["name"] for one in answer["results"]] == [f"part {n}.png" for n in range(4)]
    assert (answer["object"], answer["method"]) == ("plate", "dual-image")


def test_products_are_listed_replaced_and_deleted(client, profile):
    assert client.get("/v1/products").json() == {"products": []}
    first = put(client, profile).json()
    assert client.get("/v1/products/plate-7").json() == first
    second = put(client, profile.with_threshold(0.7)).json()
    assert second["profile"] != first["profile"]
    assert [one["threshold"] for one in client.get("/v1/products").json()["products"]] == [0.7]
    assert {one["profile"] for one in send(client, product="plate-7").json()["results"]} == {
        second["profile"]
    }
    assert client.delete("/v1/products/plate-7").status_code == 204
    refused(client.delete("/v1/products/plate-7"), 404, "unknown_product")
    refused(client.get("/v1/products/plate-7"), 404, "unknown_product")
    refused(send(client, product="plate-7"), 404, "unknown_product")


def test_what_does_not_fit_is_refused_and_not_stored(client, profile, small_model, tmp_path):
    refused(client.put("/v1/products/x", content=b"no profile"), 422, "unusable_profile")
    several = clipspect.load(["anoclip", "clip"], str(small_model), device="cpu")
    made, _ = clipspect.create_profile(several, [plate(n) for n in range(3)], "plate", "x")
    refused(put(client, made), 422, "impossible_request")
    other = clipspect.load("anoclip", str(small_model), weights="random", seed=1, device="cpu")
    made, _ = clipspect.create_profile(other, [plate(n) for n in range(3)], "plate", "x")
    refused(put(client, made), 422, "unusable_profile")
    foreign = clipspect.load("anoclip", "tiny", device="cpu")
    made, _ = clipspect.create_profile(foreign, [plate(n) for n in range(3)], "plate", "x")
    refused(put(client, made), 422, "impossible_request")
    for name in ("..%2fevil", "UPPER", ".hidden", "a" * 64):
        assert put(client, profile, name).status_code in (404, 422)
    refused(put(client, profile, headers={"content-type": "application/json"}), 415, "unsupported_media_type")
    assert client.get("/v1/products").json() == {"products": []}
    assert not list(tmp_path.rglob("*.clipspect"))


def test_requests_name_a_product_or_an_object(client, profile):
    put(client, profile)
    for fields in ({}, {"product": "plate-7", "object": "plate"}, {"product": "plate-7", "method": "clip"},
                   {"product": "../x"}):  # fmt: skip
        refused(send(client, **fields), 422, "invalid")
    image = base64.b64encode(photo(1)).decode()
    body = {"product": "plate-7", "images": [image], "names": ["left.png"]}
    assert client.post("/v1/detect", json=body).json()["results"][0]["name"] == "left.png"
    refused(client.post("/v1/detect", json={**body, "names": ["a", "b"]}), 422, "invalid")
    assert (
        client.post("/v1/detect", json={"object": "x", "images": [image]}).json()["results"][0]["name"]
        is None
    )


def test_products_survive_a_restart_and_a_damaged_file_hides_no_other(service, profile, engine):
    put(service(), profile)
    (engine.products.folder / "broken.clipspect").write_bytes(b"PK half")
    listed = service().get("/v1/products").json()["products"]
    assert [one["name"] for one in listed] == ["plate-7"]
    refused(send(service(), product="broken"), 422, "unusable_profile")


def test_scores_and_verdicts_are_counted_by_object_and_profile(client, profile):
    label = put(client, profile).json()["profile"]
    send(client, product="plate-7")
    client.post("/v1/detect", data={"object": "anything"}, files={"images": photo(1)})
    text = client.get("/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("clipspect_verdicts_total")]
    assert sum(float(line.split()[-1]) for line in counted) == 4
    assert all(f'profile="{label}"' in line for line in counted)
    assert f'clipspect_scores_count{{object="plate",profile="{label}"}} 4.0' in text
    assert "anything" not in text
    assert "/v1/products/{name}" in text


def test_each_key_has_a_name_and_the_log_of_decisions_tells_it(service, profile, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"line 3: {KEY}\n\nlab: {OTHER}\n")
    log = tmp_path / "decisions.jsonl"
    client = service(api_key_file=keys, decision_log=log)
    refused(client.get("/v1/products"), 401, "unauthorized")
    for key in (KEY, OTHER):
        client.headers["authorization"] = f"Bearer {key}"
        assert put(client, profile).status_code == 200
        assert send(client, product="plate-7").status_code == 200
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [one["client"] for one in entries] == ["line 3"] * 4 + ["lab"] * 4
    kept = "time client content_hash object method model weights verdict score threshold profile error"
    assert set(entries[0]) == set(kept.split())
    for text, reason in ((f"a: {KEY}\na: {OTHER}", "twice"), ("", "no API key"), ("a: short", "at least 16")):
        keys.write_text(text)
        with pytest.raises(UsageError, match=reason):
            ServiceSettings(api_key_file=keys).api_keys()


def test_a_log_that_cannot_be_written_stops_no_answer(service, tmp_path, caplog):
    client = service(decision_log=tmp_path / "absent" / "log")
    assert client.post("/v1/detect", data={"object": "plate"}, files={"images": photo(1)}).status_code == 200
    assert "decisions were not logged" in caplog.text


def test_the_docs_page_is_behind_the_key_and_loads_nothing_from_elsewhere(service, tmp_path):
    pytest.importorskip("fastapi_offline")
    (tmp_path / "keys").write_text(KEY)
    client = service(api_key_file=tmp_path / "keys")
    asked = client.get("/docs")
    refused(asked, 401, "unauthorized")
    assert asked.headers["www-authenticate"].startswith("Basic")
    client.auth = ("anyone", KEY)
    page = client.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
        assert client.get(f"/docs/{name}").status_code == 200
    assert client.get("/docs/core.py").status_code == 404
    assert client.get("/openapi.json").status_code == 200


def test_batches_of_one_product_are_scored_together(engine, profile):
    engine.keep_product("plate-7", profile.to_bytes())
    pending = [
        PendingRequest(InspectRequest((photo(n),), "", (), "", product="plate-7"), 60) for n in range(3)
    ]
    answers = engine.answer(pending)
    alone = [engine.answer([one])[0] for one in pending]
    for one, other in zip(answers, alone, strict=True):
        np.testing.assert_allclose(one[0].score, other[0].score, atol=1e-5)


def test_profiles_of_the_command_are_products_before_the_service_is_ready(profile, small_model, tmp_path):
    from clipspect.server.service import start_service, stop_service

    path = tmp_path / "bracket-1.clipspect"
    path.write_bytes(profile.to_bytes())
    port = free_port()
    settings = ServiceSettings(
        models=(str(small_model),),
        references=tmp_path / "references",
        products=tmp_path / "products",
        profiles=(path,),
    )
    try:
        start_service(settings, host="127.0.0.1", port=port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            (product,) = client.get("/v1/products").json()["products"]
            answer = send(client, product="bracket-1").json()
    finally:
        stop_service()
    assert product["name"] == "bracket-1"
    assert {one["profile"] for one in answer["results"]} == {product["profile"]}
    assert {one["threshold"] for one in answer["results"]} == {0.4}


def test_a_profile_of_the_command_that_does_not_fit_is_refused(profile, engine, tmp_path):
    two_models = tmp_path / "two.clipspect"
    replace(profile, options={**profile.options, "visual_model": "x"}).write(two_models)
    fine, badly_named = tmp_path / "fine.clipspect", tmp_path / "Upper case.clipspect"
    for path in (fine, badly_named):
        path.write_bytes(profile.to_bytes())
    broken, missing = tmp_path / "broken.clipspect", tmp_path / "missing.clipspect"
    broken.write_bytes(b"no profile")
    small, folder = engine.models, tmp_path / "references"
    with_tiny = type(engine)(("tiny",), references=folder)
    larger = type(engine)(small, references=folder, config=DetectorConfig(image_size=64))
    random = type(engine)(small, references=folder, config=DetectorConfig(weights="random", seed=1))
    rounded = type(engine)(small, references=folder, config=DetectorConfig(precision="bf16"))
    for refusing, path, reason in (
        (engine, badly_named, "begins with a letter or digit"),
        (engine, broken, "is damaged"),
        (engine, missing, "no such profile"),
        (engine, two_models, "needs two models"),
        (with_tiny, fine, "there are: tiny"),
        (larger, fine, "another input size"),
        (random, fine, "another weights"),
        (rounded, fine, "bf16"),
    ):
        with pytest.raises(ProfileError, match=f"^{re.escape(str(path))}.*{reason}"):
            refusing.store_profiles([fine, path] if refusing is engine else [path])
        assert refusing.list_products() == [], "all profiles are checked before one is stored"


@pytest.mark.parametrize("method", ["anomaly-dino", "subspace"])
def test_a_profile_of_a_model_without_text_is_served(method, tmp_path):
    pytest.importorskip("timm")
    model, options = "timm:vit_tiny_patch16_224", {"image_size": 96, "weights": "random", "device": "cpu"}
    detector = clipspect.load(method, model, **options)
    made, _ = clipspect.create_profile(detector, [plate(n) for n in range(50, 54)], "plate", "mine")
    path = tmp_path / "mine.clipspect"
    made.write(path)
    settings = ServiceSettings(
        profiles=(path,),
        references=tmp_path / "references",
        products=tmp_path / "products",
        config=DetectorConfig(**options),
    )
    engine = make_engine(settings)
    engine.store_profiles(settings.profiles)
    engine.load()
    (found,) = engine.answer([PendingRequest(InspectRequest((photo(1),), "", (), "", product="mine"), 60)])
    expected = clipspect.load_product(path, DetectorConfig(device="cpu")).detect(photo(1))
    assert found[0].score == pytest.approx(expected.score, abs=1e-6)
    engine.products.delete("mine")
    replica = make_engine(settings)
    replica.load()  # the model is loaded without the product too
    with pytest.raises(UsageError, match="no text tower"):
        replica.detector(("anoclip",), model)


def test_profiles_are_stored_before_replicas_start_and_not_when_one_restarts(
    profile, small_model, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="the service's extra is not installed")
    from clipspect.server.deployment import Inspector, build
    from clipspect.server.product_store import ProductStore
    from clipspect.server.service import start_service

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no Ray here")

    path = tmp_path / "bracket.clipspect"
    path.write_bytes(profile.to_bytes())
    settings = ServiceSettings(
        references=tmp_path / "references", products=tmp_path / "products", profiles=(path,), replicas=2
    )
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UsageError, match="no Ray here"):
        start_service(settings, host="127.0.0.1", port=free_port())
    products = ProductStore(settings.products)
    assert products.names() == ["bracket"]
    products.delete("bracket")
    Inspector.func_or_class(settings)
    assert products.names() == [], "a replica that restarts does not undo what a client has deleted"
    build(settings)
    assert products.names() == ["bracket"]


def test_the_command_serves_the_model_of_its_profiles(profile, small_model, tmp_path, monkeypatch):
    from clipspect.cli import app

    seen = {}
    monkeypatch.setattr("clipspect.server.service.run_service", lambda s, **_: seen.update(settings=s))
    path = tmp_path / "bracket.clipspect"
    path.write_bytes(profile.to_bytes())
    app(["serve", "--profile", str(path)], standalone_mode=False)
    assert seen["settings"].models == (profile.backbone.model,) == (str(small_model),)
    assert seen["settings"].profiles == (path,)
    app(["serve", "--model", "tiny", "--profile", str(path)], standalone_mode=False)
    assert seen["settings"].models == ("tiny",), "a model that is given is served, even the default one"
    again = tmp_path / "again"
    again.mkdir()
    (again / "bracket.clipspect").write_bytes(profile.to_bytes())
    with pytest.raises(UsageError, match="rename one"):
        app(["serve", "--profile", str(path), "--profile", str(again / path.name)], standalone_mode=False)


def test_a_cluster_reads_profiles_as_the_command_does(profile, small_model, tmp_path):
    path, again = tmp_path / "bracket.clipspect", tmp_path / "again" / "bracket"
    again.parent.mkdir()
    for one in (path, again):
        one.write_bytes(profile.to_bytes())
    settings = read_settings({"profiles": [str(path)]})
    assert (settings.models, settings.profiles) == ((str(small_model),), (path,))
    assert read_settings({"profiles": [str(path)], "models": ["tiny"]}).models == ("tiny",)
    assert read_settings({}).models == read_settings({"models": []}).models == ("tiny",)
    with pytest.raises(UsageError, match="one file name, which names the product"):
        read_settings({"profiles": [str(path), str(again)]})
    path.write_bytes(b"no profile")
    with pytest.raises(ProfileError, match=re.escape(f"{path} is damaged")):
        read_settings({"profiles": [str(path)]})
