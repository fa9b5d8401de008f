"""Request and response schemas of the service, as shown by OpenAPI."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from clipspect.registry import DEFAULT_METHOD
from clipspect.results.schema import COLUMNS, REGION_FIELDS, Column
from clipspect.server.product_store import NAME_PATTERN
from clipspect.server.reference_store import ID_PATTERN
from clipspect.server.requests import InspectRequest
from clipspect.types import Verdict

# A valid one-pixel gray image, so that the documented example can be sent unchanged.
ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2xTLXQAAAABJRU5ErkJggg=="


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):  # from multipart
        return value
    if not isinstance(value, str):
        raise ValueError("must be a file's content as base64 text")
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
    str, Field(min_length=1, max_length=80, description="Name of the object in the images.")
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
    """Images to score. In multipart requests, images and references are files and the rest are plain fields."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"object": "metal flange", "images": [ONE_PIXEL]}]},
    )

    object: ObjectName | None = None  # type: ignore[assignment]
    product: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="A name of GET /v1/products; replaces object, method, model, references.",
    )
    names: list[Annotated[str, Field(max_length=255)]] = Field(
        [],
        description="Names of the images, which come back with the results; with a product, those of the files.",
    )
    references: list[PreparedImage] = Field([], description="Known-good images, for this request only.")
    references_id: str | None = Field(
        None, pattern=ID_PATTERN, description="Id returned by POST /v1/references; replaces references."
    )
    threshold: Unit | None = Field(
        None, gt=0, lt=1, description="Flag scores at or above this value; the default is 0.5."
    )
    include: list[Include] = Field([], description="Visualizations to include in the response.")

    @model_validator(mode="after")
    def _one_of_each(self) -> DetectRequest:
        if self.references and self.references_id:
            raise ValueError("references and references_id exclude each other; send one of them")
        if self.names and len(self.names) != len(self.images):
            raise ValueError("names and images differ in number; send a name for each image, or none")
        given = {"object", "method", "model", "references", "references_id"} & self.model_fields_set
        if self.product and given:
            raise ValueError(f"the product has its own {sorted(given)[0]}; leave it out")
        if not self.product and not self.object:
            raise ValueError("object or product is missing; name what is on the images")
        return self

    def to_request(self, default_model: str) -> InspectRequest:
        """Return the request in the engine's form."""
        if self.product:
            return InspectRequest(
                tuple(self.images), "", (), "", threshold=self.threshold, product=self.product
            )
        assert self.object is not None  # see _one_of_each
        return InspectRequest(
            tuple(self.images),
            self.object,
            (self.method,),
            self.model or default_model,
            self.references_id or tuple(self.references),
            self.threshold,
        )


class ReferencesRequest(_Request):
    """Reference images to encode once and store."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"object": "metal flange", "method": "dual-image", "images": [ONE_PIXEL]}]
        },
    )

    method: str = Field(
        "dual-image", description="The method that will use the references; see accepts_references."
    )

    def to_request(self, default_model: str) -> InspectRequest:
        """Return the request in the engine's form."""
        return InspectRequest(tuple(self.images), self.object, (self.method,), self.model or default_model)


_TYPES: dict[str, Any] = {
    "string": str, "bool": bool, "int32": int, "int64": int, "float64": float, "strings": list[str],
}  # fmt: skip

_region_fields: dict[str, Any] = {name: _TYPES[kind] for name, kind in REGION_FIELDS.items()}
_Region: Any = create_model("_Region", **_region_fields)


class RegionOut(_Region):  # type: ignore[misc]
    """Connected region at or above the threshold, in image pixels."""


def _field(column: Column) -> tuple[Any, Any]:
    special: dict[str, Any] = {"verdict": Verdict, "regions": list[RegionOut]}
    own = special.get(column.name) or _TYPES[column.kind]
    return own | None if column.nullable else own, Field(description=column.about)


_columns: dict[str, Any] = {one.name: _field(one) for one in COLUMNS if one.is_light and one.in_response}
_Columns: Any = create_model("_Columns", **_columns)


class ResultOut(_Columns):  # type: ignore[misc]
    """Result of one image, in request order. If error is set, the image could not be scored."""

    index: int
    name: str | None = Field(None, description="Name of the image in the request, if it had one.")
    overlay: str | None = Field(None, description="PNG as base64: heatmap and regions over the image.")
    map: str | None = Field(None, description="16-bit grayscale PNG as base64, in image size; 65535 is 1.")


class DetectResponse(BaseModel):
    """Response to a detect request."""

    object: str
    method: str
    model: str
    weights: str
    results: list[ResultOut]
    batched: int = Field(description="Number of requests scored together, including this one.")
    seconds: float = Field(description="Seconds of scoring and drawing, without waiting.")


class ReferencesResponse(BaseModel):
    """Id of the stored references."""

    id: str = Field(pattern=ID_PATTERN)
    count: int
    object: str
    method: str
    model: str


class ProductOut(BaseModel):
    """Product that requests may name."""

    name: str
    profile: str = Field(description="Name and version, as results carry them.")
    object: str
    method: str
    model: str
    threshold: float | None = Field(description="None with fewer than three known-good images.")
    good_images: int


class ProductsResponse(BaseModel):
    """The products of the service."""

    products: list[ProductOut]


class ModelOut(BaseModel):
    """Model that requests may name."""

    name: str
    about: str
    object_note: str


class MethodOut(BaseModel):
    """Method that requests may name."""

    name: str
    about: str
    accepts_references: bool
    needs_references: bool
    looks_at_the_whole_set: bool


class LimitsOut(BaseModel):
    """Limits of one request."""

    body_mb: float
    image_mb: float
    pixels: int
    images: int
    references: int


class ModelsResponse(BaseModel):
    """Available models, methods and limits; the first model is the default."""

    models: list[ModelOut]
    methods: list[MethodOut]
    limits: LimitsOut


class ErrorDetail(BaseModel):
    """One invalid field."""

    field: str
    message: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str
    retryable: bool = Field(description="Whether the same request may succeed later; see Retry-After.")
    details: list[ErrorDetail]


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorBody


class Health(BaseModel):
    """A sign of life."""

    status: Literal["ok", "ready"]
