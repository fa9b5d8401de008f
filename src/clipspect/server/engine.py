"""Scoring engine behind the page and the service: detectors keyed by (methods, model), with progress reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from clipspect.backbones.presets import PRESETS
from clipspect.config import DetectorConfig
from clipspect.detection import Detection, at_threshold
from clipspect.errors import ClipspectError, ProfileError, ReferencesError, UsageError
from clipspect.postprocess.calibration import MIN_GOOD
from clipspect.profile import SUFFIX, read_profile
from clipspect.prompts import clean_object_name
from clipspect.registry import list_methods, method_class
from clipspect.server.errors import ServiceError
from clipspect.server.product_store import ProductInfo, ProductStore, product_info
from clipspect.server.reference_store import ReferenceStore
from clipspect.server.requests import InspectRequest, Kept, PendingRequest, Progress
from clipspect.server.settings import ServiceSettings
from clipspect.types import Step, plural

if TYPE_CHECKING:
    from clipspect.backbones.base import Backbone
    from clipspect.detector import Detector
    from clipspect.product import Product
    from clipspect.profile import Profile
    from clipspect.references import Given


MOST_LOADED = 32
"""Products kept in memory; others are loaded again when they are asked for."""


class Engine:
    """Detectors over a fixed list of models. Only one computation runs at a time."""

    def __init__(
        self,
        models: Sequence[str] = ("tiny",),
        *,
        references: Path,
        products: Path | None = None,
        config: DetectorConfig | None = None,
    ) -> None:
        """Set the models that requests may name. Nothing is loaded yet.

        Args:
            models: names that requests may use; the first is the default. No other model is ever loaded, so a client
                cannot name a file, a hub or a checkpoint.
            references: folder of stored references.
            products: folder of product profiles; None = beside the references.
            config: options of every model's detectors; each model's name and methods are put in.
        """
        self.models = tuple(models)
        self.references = ReferenceStore(references)
        self.products = ProductStore(products or references / "products")
        self._products: dict[str, Product] = {}
        self._config = config or DetectorConfig()
        self._backbones: dict[str, Backbone] = {}
        self._detectors: dict[tuple[tuple[str, ...], str], Detector] = {}
        self._loading = threading.Lock()
        self._busy = threading.Lock()

    def load(self) -> None:
        """Load every model. Raises WeightsError or UsageError for one that cannot be loaded."""
        for model in self.models:
            with self._loading:
                self._backbone(model)

    def store_profiles(self, paths: Sequence[Path]) -> None:
        """Store profiles as products under their files' names, in place of earlier ones. All are checked first.

        Raises:
            ProfileError: no profile, or one that this service cannot use; the message names the file.
            ResultsError: the folder of products cannot be written.
        """
        for profile in [self._read_usable(path) for path in paths]:
            self.products.put(profile)

    def catalogue(self) -> dict[str, Any]:
        """Return the models and methods that requests may use, as JSON-serializable values."""
        return {
            "models": [
                {
                    "name": name,
                    "about": PRESETS[name].about if name in PRESETS else "given by the operator",
                    "object_note": PRESETS[name].object_note if name in PRESETS else "",
                }
                for name in self.models
            ],
            "methods": [
                {
                    "name": name,
                    "about": about,
                    "accepts_references": method_class(name).accepts_references,
                    "needs_references": method_class(name).needs_references,
                    "looks_at_the_whole_set": method_class(name).scope == "set",
                }
                for name, about in list_methods().items()
            ],
        }

    def detector(self, methods: tuple[str, ...], model: str) -> Detector:
        """Return the detector for methods on a model. A model's weights are loaded once for all methods.

        Raises UsageError for an unknown name or a model that a method cannot use, and WeightsError.
        """
        if model not in self.models:
            raise UsageError(f"unknown model {model!r}; there are: {', '.join(self.models)}")
        from clipspect.loading import build_detector

        with self._loading:
            key = methods, model
            if key not in self._detectors:
                config = self._config.replace(model=model, method=methods)
                self._detectors[key] = build_detector(config, self._backbone(model))
            return self._detectors[key]

    def product(self, profile: Profile) -> Product:
        """Return the loaded product of a profile; products share the weights of their model.

        Raises:
            ProfileError: made with other weights than the service's.
            UsageError: of a model that the service does not have, or of two models.
        """
        from clipspect.product import load_product

        if profile.version not in self._products:
            model = profile.backbone.model
            if "visual_model" in profile.options:
                raise UsageError(f"{profile.name} needs two models (visual_model); a service uses one")
            if model not in self.models:
                raise UsageError(
                    f"{profile.name} is for the model {model}; there are: {', '.join(self.models)}"
                )
            given = DetectorConfig(batch_size=self._config.batch_size, max_pixels=self._config.max_pixels)
            with self._loading:
                loaded = load_product(profile, given, self._backbone(model))
                while len(self._products) >= MOST_LOADED:
                    self._products.pop(next(iter(self._products)))
                self._products[profile.version] = loaded
        return self._products[profile.version]

    def keep_product(self, name: str, data: bytes) -> ProductInfo:
        """Store a profile after loading it once.

        Raises ProfileError, UsageError, ServiceError, ResultsError.
        """
        profile = self._checked(name, data)
        self.products.put(profile)
        return product_info(profile)

    def list_products(self) -> list[ProductInfo]:
        """Return what clients are told of the products; a damaged file is left out."""
        found = []
        for name in self.products.names():
            with suppress(ProfileError, ServiceError):  # deleted meanwhile
                found.append(product_info(self.products.find(name)))
        return found

    def inspect(
        self, request: InspectRequest, on_step: Step | None = None, product: Product | None = None
    ) -> Iterator[Progress]:
        """Answer one request, yielding each step; the last Progress is ``done`` and holds every detection.

        ``on_step`` is called while references and images of a set are encoded. An exception of it ends the request.
        A ``product`` gives object, methods, model, references and thresholds in place of the request's.

        Raises ClipspectError for an invalid request. An image that cannot be scored is a detection with an error.
        """
        started = perf_counter()
        found: list[Detection] = []

        def step(
            message: str, stage: str, scored: int = 0, total: int = 0, *, done: bool = False
        ) -> Progress:
            return Progress(message, tuple(found), perf_counter() - started, done, stage, scored, total)

        model, count = request.model, len(request.images)
        images = plural(count, "image")
        given_name = request.object if product is None else product.profile.object
        object_name = clean_object_name(given_name)
        if product is None and model in self.models and model not in self._backbones:
            yield step(
                f"Loading the model {model}; the first load takes longest", f"loading the model {model}"
            )
        detector = self.detector(request.methods, model) if product is None else product.detector
        each = len(detector.methods)
        how = f"with {' and '.join(m.name for m in detector.methods)} on {model or detector.backbone.name}"
        given: Given = {} if product is None else {"good": product.good}
        if product is None and request.references:
            yield step("Encoding the references", "encoding the known-good images")
            with self._busy:
                given = self._references(detector, request, on_step)
        yield step(f"Encoding the prompts for “{object_name}”", "encoding the prompts")
        with self._busy:
            detector.model.set_object(object_name)
        first = "Encoding" if any(m.scope == "set" for m in detector.methods) else "Scoring"
        yield step(f"{first} {images} {how}", "scoring images", 0, count)
        stream = detector.stream(request.images, object=given_name, on_step=on_step, **given)
        while True:
            with self._busy:  # lock per batch, so that a cancelled request does not block others
                detection = next(stream, None)
            if detection is None:
                break
            found.append(detection)
            if len(found) % each == 0 and len(found) < count * each:
                scored = len(found) // each
                yield step(f"Scored {scored} of {images} {how}", "scoring images", scored, count)
        said = f"{images} {how} in {perf_counter() - started:.1f} s"
        yield step(said, "scoring images", count, count, done=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute nothing else while the block runs."""
        with self._busy:
            yield

    def answer(self, pending: Sequence[PendingRequest]) -> list[list[Detection] | ClipspectError]:
        """Answer several requests at once. Each gets its own detections or its own error.

        Images of different requests are encoded together if their method scores each image independently. A method that
        compares a set of images uses only the images of one request: results never depend on another client's images.
        """
        answers: list[list[Detection] | ClipspectError] = [[] for _ in pending]
        for group in self._groups(pending):
            joined = [pending[position] for position in group]
            try:
                found = self._score_together(joined)
            except ClipspectError as error:
                found = [error] * len(joined)
            for position, own in zip(group, found, strict=True):
                answers[position] = own
        return answers

    def keep_references(self, request: InspectRequest) -> Kept:
        """Encode a request's images as references and store them.

        Raises UsageError (the method uses no references), ImageError, ReferencesError.
        """
        (method,) = request.methods
        if not method_class(method).accepts_references:
            raise UsageError(f"{method} uses no references; choose a method that does, such as dual-image")
        detector = self.detector(request.methods, request.model)
        object_name = clean_object_name(request.object)
        name, path = self.references.place(detector.settings(), object_name, request.images)
        with self._busy, _hide_path(path, name):
            count = detector.write_references(request.images, request.object, path)
            self.references.tidy()
        return Kept(id=name, count=count, object=object_name, method=method, model=request.model)

    def _backbone(self, model: str) -> Backbone:
        """Return a model's backbone, loaded for no method, so that it may be one without text. Needs the lock."""
        from clipspect.backbones.loader import load_backbone
        from clipspect.precision import resolve_precision

        if model not in self._backbones:
            one = self._config
            loaded = load_backbone(
                model, one.weights, image_size=one.image_size, device=one.device, seed=one.seed
            )
            self._backbones[model], _ = resolve_precision(loaded, one.precision)
        return self._backbones[model]

    def _checked(self, name: str, data: bytes) -> Profile:
        """Return the profile that is to be stored under a name, after loading it once."""
        profile = self.products.read(name, data)
        self.product(profile)
        return profile

    def _read_usable(self, path: Path) -> Profile:
        """Return the profile of a file that this service can use. Raises ProfileError, which names the file."""
        read_profile(path)  # names the file if it is damaged
        try:
            return self._checked(path.name.removesuffix(SUFFIX), path.read_bytes())
        except ClipspectError as error:
            raise ProfileError(f"{path}: {error}") from error

    def _references(self, detector: Detector, request: InspectRequest, on_step: Step | None = None) -> Given:
        """What the stream is given beside the images; kept references bring their calibration along."""
        if isinstance(request.references, str):
            path = self.references.find(request.references)
            with _hide_path(path, request.references):
                return detector.read_given(path, request.object)
        if request.calibrate and len(request.references) >= MIN_GOOD:
            return {"good": detector.calibrate(request.references, request.object, on_step=on_step)}
        if request.references:
            return {"references": detector.encode_references(request.references)}
        return {}

    def _groups(self, pending: Sequence[PendingRequest]) -> list[list[int]]:
        """Return groups of positions of requests that can be scored in one stream."""
        groups: dict[object, list[int]] = {}
        for position, one in enumerate(pending):
            request = one.request
            alone = any(m in list_methods() and method_class(m).scope == "set" for m in request.methods)
            kept = request.references if isinstance(request.references, str) else None
            alone = alone or (kept is None and bool(request.references))
            key = (
                position if alone else (request.methods, request.model, request.object, kept, request.product)
            )
            groups.setdefault(key, []).append(position)
        return list(groups.values())

    def _score_together(self, pending: Sequence[PendingRequest]) -> list[list[Detection] | ClipspectError]:
        answers: list[list[Detection] | ClipspectError] = [_given_up() for _ in pending]
        wanted = [position for position, one in enumerate(pending) if one.wanted]
        if not wanted:
            return answers
        first = pending[wanted[0]].request
        images = [data for position in wanted for data in pending[position].request.images]
        found: list[Detection] = []
        detector, object_name, given = self._prepared(first)
        with self._busy:
            for detection in detector.stream(images, object=object_name, **given):
                found.append(detection)
                if not any(pending[position].wanted for position in wanted):
                    return answers
        start = 0
        for position in wanted:
            request = pending[position].request
            stop = start + len(request.images) * max(1, len(request.methods))
            answers[position] = [at_threshold(d, request.threshold) for d in found[start:stop]]
            start = stop
        return answers

    def _prepared(self, request: InspectRequest) -> tuple[Detector, str, Given]:
        """The detector of a request, its object, and what its stream is given beside the images."""
        if request.product:
            product = self.product(self.products.find(request.product))
            return product.detector, product.profile.object, {"good": product.good}
        detector = self.detector(request.methods, request.model)
        with self._busy:
            return detector, request.object, self._references(detector, request)


def make_engine(settings: ServiceSettings) -> Engine:
    """Return the engine of a service. Nothing is loaded yet."""
    return Engine(
        settings.models, references=settings.references, products=settings.products, config=settings.detector
    )


def store_profiles(settings: ServiceSettings) -> None:
    """Store the profiles of the settings as products. Their models are loaded to check them, and freed again.

    Raises ProfileError for a profile that this service cannot use, and ResultsError.
    """
    if not settings.profiles:
        return
    make_engine(settings).store_profiles(settings.profiles)
    import torch

    torch.cuda.empty_cache()  # the replicas need the memory


def _given_up() -> ServiceError:
    return ServiceError(
        503, "given_up", "the time limit passed, or the client left, before the answer was ready"
    )


@contextmanager
def _hide_path(path: Path, name: str) -> Iterator[None]:
    """Replace the path of a stored reference file by its id in errors, so that clients do not see the path."""
    try:
        yield
    except ReferencesError as error:
        raise ReferencesError(str(error).replace(str(path), f"references {name}")) from None
