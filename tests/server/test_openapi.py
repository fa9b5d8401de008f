"""The service keeps what its OpenAPI schema promises, whatever is sent."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis", reason="the extra for development is not installed")
pytest.importorskip("fastapi", reason="the service's extra is not installed")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode

from clipspect.results.schema import COLUMNS, REGION_FIELDS
from clipspect.server.app import create_app
from clipspect.server.schemas import ONE_PIXEL, RegionOut, ResultOut
from clipspect.server.settings import API_KEY_VARIABLE, ServiceSettings

pytestmark = pytest.mark.integration

# A text that is base64 is seldom an image: that the schema allows a body does not mean that it is one.
UNSUITABLE = {"positive_data_acceptance"}
KEY = "a key long enough to be one"
SHOWN = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def schema(backend, small_model, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)
    app = create_app(backend, ServiceSettings(models=(str(small_model),), time_limit=20))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=SHOWN)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_the_schema_promises(schema, mode):
    operations = [result.ok() for result in schema.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:  # without a body there is nothing to get wrong
        operations = [operation for operation in operations if operation.body]
    seen: set[int] = set()

    def checked(case) -> None:
        excluded = [CHECKS.get_one(name) for name in UNSUITABLE]
        seen.add(case.call_and_validate(headers=SHOWN, excluded_checks=excluded).status_code)

    for operation in operations:
        examples = given(case=operation.as_strategy(generation_mode=mode))(checked)
        settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))(
            examples
        )()
    assert len(operations) == (3 if mode is GenerationMode.NEGATIVE else 10)
    assert seen & ({422} if mode is GenerationMode.NEGATIVE else {200})
    assert 500 not in seen


def test_the_documented_example_is_answered(client):
    paths = client.get("/openapi.json").json()["paths"]
    for route in ("/v1/detect", "/v1/references"):
        content = paths[route]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        example = content["application/json"]["examples"]["json"]["value"]
        assert example["images"] == [ONE_PIXEL]
        assert client.post(route, json=example).status_code == 200


def test_a_result_has_the_columns_of_a_row_and_regions_their_fields():
    columns = {one.name for one in COLUMNS if one.is_light and one.in_response}
    assert {"score", "verdict", "threshold_source", "regions"} <= columns
    assert set(ResultOut.model_fields) == columns | {"index", "name", "overlay", "map"}
    assert set(RegionOut.model_fields) == set(REGION_FIELDS)
    described = ResultOut.model_json_schema()["properties"]
    assert described["score"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert described["width"]["type"] == "integer"
    assert "flagged" in described["verdict"]["enum"]
