"""What goes over the wire: requests and answers of the service, as OpenAPI shows them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from clipspect.registry import DEFAULT_METHOD
from clipspect.server.engine import InspectRequest
from clipspect.server.reference_store import ID_PATTERN
from clipspect.types import Verdict

# A whole picture of one grey pixel, so that the documentation's example can be sent as it stands.
ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2xTLXQAAAABJRU5ErkJggg=="


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):  # from multipart
        return value
    if not isinstance(value, str):
        raise ValueError("a file's content as base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64; encode the file's content, without a data: prefix") from error


PreparedImage = Annotated[
    bytes,
    BeforeValidator(_bytes),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*", "minLength": 4}
    ),
]
ObjectName = Annotated[
    str, Field(min_length=1, max_length=80, description="What is on the images, in plain words.")
]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Include = Literal["overlay", "map"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    object: ObjectName
    images: list[PreparedImage] = Field(min_length=1)
    method: str = Field(DEFAULT_METHOD, description="A name of GET /v1/models.")
    model: str | None = Field(None, description="A name of GET /v1/models; without it the first one there.")


class DetectRequest(_Request):
    """Images to be scored. In multipart, images and references are files and the rest plain fields."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"object": "metal flange", "images": [ONE_PIXEL]}]},
    )

    references: list[PreparedImage] = Field([], description="Known-good images, for this request alone.")
    references_id: str | None = Field(
        None, pattern=ID_PATTERN, description="Instead of references: the id POST /v1/references gave."
    )
    threshold: Unit | None = Field(None, gt=0, lt=1, description="Flag scores from here on, instead of 0.5.")
    include: list[Include] = Field([], description="Pictures wanted in the answer.")

    @model_validator(mode="after")
    def _one_of_each(self) -> DetectRequest:
        if self.references and self.references_id:
            raise ValueError("references and references_id are two ways to say the same; send one")
        return self

    def inquiry(self, default_model: str) -> InspectRequest:
        """What the engine is asked."""
        return InspectRequest(
            tuple(self.images),
            self.object,
            (self.method,),
            self.model or default_model,
            self.references_id or tuple(self.references),
            self.threshold,
        )


class ReferencesRequest(_Request):
    """Known-good images to be encoded once and kept."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"object": "metal flange", "method": "dual-image", "images": [ONE_PIXEL]}]
        },
    )

    method: str = Field("dual-image", description="The method they are for; see accepts_references.")

    def inquiry(self, default_model: str) -> InspectRequest:
        """What the engine is asked."""
        return InspectRequest(tuple(self.images), self.object, (self.method,), self.model or default_model)


class RegionOut(BaseModel):
    """A connected part of an image at or above the threshold, in image pixels."""

    left: int
    top: int
    width: int
    height: int
    area: int
    peak: float
    peak_x: int
    peak_y: int


class ResultOut(BaseModel):
    """One image's result, in the order of the request. Where error is set, the image could not be scored."""

    index: int
    content_hash: str = Field(description="SHA-256 of the image as it was sent.")
    width: int
    height: int
    score: float | None = Field(description="Calibrated anomaly score in [0, 1].")
    raw_score: float | None = Field(description="The method's own image score, for ranking.")
    flag: bool | None = Field(description="Whether the verdict asks for a look.")
    verdict: Verdict = Field(description="See docs/calibration.md.")
    threshold: float | None = Field(
        description="Scores from here on are flagged; null where none can be given."
    )
    threshold_source: str | None
    regions: list[RegionOut]
    error: str | None
    warnings: list[str]
    overlay: str | None = Field(None, description="PNG as base64: heat and regions over the image.")
    map: str | None = Field(
        None, description="PNG of 16-bit grey as base64, of the image's size; 65535 is 1."
    )


class DetectResponse(BaseModel):
    """The answer to a detect request."""

    object: str
    method: str
    model: str
    weights: str
    results: list[ResultOut]
    batched: int = Field(description="Requests that were scored together with this one, itself included.")
    seconds: float = Field(description="Scoring and drawing, waiting not included.")


class ReferencesResponse(BaseModel):
    """Where the references are kept."""

    id: str = Field(pattern=ID_PATTERN)
    count: int
    object: str
    method: str
    model: str


class ModelOut(BaseModel):
    """A model requests may name."""

    name: str
    about: str


class MethodOut(BaseModel):
    """A method requests may name."""

    name: str
    about: str
    accepts_references: bool
    needs_references: bool
    looks_at_the_whole_set: bool


class LimitsOut(BaseModel):
    """Most that one request may ask for."""

    body_mb: float
    image_mb: float
    pixels: int
    images: int
    references: int


class ModelsResponse(BaseModel):
    """What there is; the first model is the default."""

    models: list[ModelOut]
    methods: list[MethodOut]
    limits: LimitsOut


class ErrorDetail(BaseModel):
    """One field that is wrong."""

    field: str
    message: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str
    retryable: bool = Field(description="Whether the same request may succeed later; see Retry-After.")
    details: list[ErrorDetail]


class ErrorResponse(BaseModel):
    """Every error has this shape."""

    error: ErrorBody


class Health(BaseModel):
    """A sign of life."""

    status: Literal["ok", "ready"]
