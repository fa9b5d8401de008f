"""DetectorConfig: every option of a detector, declared once for Python, command line, service, Ray and benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clipspect.backbones.presets import DEFAULT_MODEL
from clipspect.data.convert import MAX_PIXELS
from clipspect.data.roi import RegionOfInterest, load_roi, parse_border
from clipspect.data.transforms import Aspect, Interpolation
from clipspect.errors import UsageError, refuse_unknown
from clipspect.methods.paper_settings import paper_settings
from clipspect.registry import DEFAULT_METHOD
from clipspect.types import PrecisionChoice

if TYPE_CHECKING:
    from clipspect.data.prepare import ImageLoader
    from clipspect.methods.base import Method

COMMON, MODEL, IMAGES, PROMPTS, REFERENCES = "Options", "Model", "Images", "Prompts", "References"


@dataclass(frozen=True)
class OptionSpec:
    """How an option is given on the command line, and its help text."""

    help: str
    flags: tuple[str, ...]
    group: str
    kind: type
    """Of one value as it is typed."""
    repeatable: bool = False
    at_least: int | None = None
    above: float | None = None
    """A bound that the value exceeds."""
    parse: Callable[[Any], Any] | None = None
    """From what is typed to the field's value; raises UsageError."""
    absent: str = ""
    """What happens where the option is not given, if its default does not say so."""
    hidden: bool = False
    """Whether ``--help`` leaves it out."""


def option(default: Any, help: str, flags: str, group: str, kind: type = str, **more: Any) -> Any:
    """Declare a field of a dataclass as an option; ``more`` are further fields of :class:`OptionSpec`."""
    spec = OptionSpec(help, tuple(flags.split()), group, kind, **more)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"option": spec})
    return field(default=default, metadata={"option": spec})


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return settings of a method from ``name=value`` texts. Raises UsageError for one without an equals sign."""
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as name=value, such as --set views=official")
        parsed[key.strip().replace("-", "_")] = value.strip()
    return parsed


def parse_tile(text: str) -> int | Literal["square"]:
    """Return the side of the tiles in pixels, or "square". Raises UsageError for anything else."""
    if text == "square":
        return "square"
    if not text.isdigit():
        raise UsageError(f"--tile {text}: give a number of pixels, or 'square'")
    return int(text)


def parse_window(text: str) -> tuple[float, float]:
    """Return the values that are black and white. Raises UsageError unless two numbers are given."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--window {text}: give two numbers, such as 0,4095") from None
    return low, high


@dataclass(frozen=True)
class DetectorConfig:
    """Options of a detector. Each has its help text, flag and checks here and nowhere else.

    Raises:
        UsageError: a value that is impossible whatever the weights are.
    """

    method: str | Method | Sequence[str | Method] | None = option(
        None,
        "A method of 'clipspect methods'; repeat it to compare several over one encoding.",
        "--method -m", COMMON, repeatable=True, absent="by what is given; anoclip in Python",
    )  # fmt: skip
    model: str = option(
        DEFAULT_MODEL,
        "A model of 'clipspect models'; or an open_clip name, hf-hub:org/name, timm:NAME, a folder, a checkpoint.",
        "--model", COMMON,
    )  # fmt: skip
    weights: str | None = option(
        None,
        "A pretrained tag, a checkpoint file, or 'random' for a control.",
        "--weights", MODEL, absent="the model's own",
    )  # fmt: skip
    _: KW_ONLY
    settings: Mapping[str, Any] = option(
        {},
        "A setting of the method: views=official. Repeatable; one that several methods have goes to each.",
        "--set -s", MODEL, repeatable=True, parse=parse_settings,
    )  # fmt: skip
    preset: str | None = option(
        None,
        "Settings of a paper's run: anovl-mvtec, anovl-visa, dual-image-paper. Options given beside it win.",
        "--preset", MODEL,
    )  # fmt: skip
    image_size: int | None = option(
        None,
        "Input side in pixels, a multiple of the patch.",
        "--image-size", MODEL, int, absent="the model's own",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda, cuda:1 …", "--device", MODEL)
    precision: PrecisionChoice = option(
        "fp32",
        "fp32; bf16, fp16 or int8, compared with fp32 on first use and refused below a rank correlation of 0.999; "
        "auto: the fastest that agrees.",
        "--precision", MODEL,
    )  # fmt: skip
    batch_size: int = option(8, "Images encoded at once.", "--batch-size", MODEL, int, at_least=1)
    aspect: Aspect = option("squash", "squash to a square (as the papers), or pad.", "--aspect", IMAGES)
    interpolation: Interpolation = option(
        "bicubic", "bicubic, or bilinear.", "--interpolation", IMAGES, hidden=True
    )
    tile: int | Literal["square"] | None = option(
        None,
        "Cut large images into overlapping tiles of this side in pixels; 'square': the shorter side.",
        "--tile", IMAGES, parse=parse_tile,
    )  # fmt: skip
    max_pixels: int = option(
        MAX_PIXELS, "Refuse larger images before decoding them.", "--max-pixels", IMAGES, int, at_least=1
    )
    bit_depth: int | None = option(
        None,
        "Bits of images that do not declare them: 12 for 12-bit values in 16-bit files.",
        "--bit-depth", IMAGES, int,
    )  # fmt: skip
    window: tuple[float, float] | None = option(
        None,
        "Values that are black and white in images with more than 8 bits: 0,4095.",
        "--window", IMAGES, parse=parse_window,
    )  # fmt: skip
    roi: Path | RegionOfInterest | None = option(
        None,
        "What to inspect: a mask (white), a folder with a mask per image, or a TOML file of polygons.",
        "--roi", IMAGES, Path, absent="all of the image",
    )  # fmt: skip
    ignore_border: str = option(
        "",
        "Border that is not inspected: 20 (pixels) or 5% (of each side).",
        "--ignore-border", IMAGES, parse=parse_border,
    )  # fmt: skip
    domain: str = option(
        "auto",
        "auto, object, texture, medical, x-ray, aerial, microscopy, or your own.",
        "--domain", PROMPTS,
    )  # fmt: skip
    object_as_is: bool = option(
        False,
        "Use the object's name unchanged (metal_nut), as the official AnoCLIP code does.",
        "--object-as-is", PROMPTS, bool,
    )  # fmt: skip
    prompts: Path | bytes | None = option(
        None,
        "A TOML file of your own words (docs/prompts.md), merged over the shipped prompt table.",
        "--prompts", PROMPTS, Path,
    )  # fmt: skip
    normal: Sequence[str] = option(
        (),
        "A further normal state: '{} as machined'. Repeatable.",
        "--normal-state",
        PROMPTS,
        repeatable=True,
    )
    abnormal: Sequence[str] = option(
        (),
        "A further abnormal state: '{} with a scratch'. Repeatable.",
        "--abnormal-state",
        PROMPTS,
        repeatable=True,
    )
    set_size: int = option(
        128,
        "Maximum number of images of a set that serve as each other's references.",
        "--set-size", REFERENCES, int, at_least=2,
    )  # fmt: skip
    visual_model: str | None = option(
        None,
        "A second model that images are compared by, such as DINOv2-B-518; --model compares them with sentences.",
        "--visual-model", MODEL, absent="one model does both",
    )  # fmt: skip
    seed: int = option(0, "Seed of random weights.", "--seed", MODEL, int)

    def __post_init__(self) -> None:
        """Check what can be checked before weights are loaded. The options of a preset are filled in beforehand."""
        check_bounds(self)
        choices = {"precision": PrecisionChoice, "aspect": Aspect, "interpolation": Interpolation}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                known = ", ".join(get_args(allowed))
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; there are: {known}")

        if self.visual_model is not None and self.precision != "fp32":
            raise UsageError(f"two models run in fp32; leave precision={self.precision} or visual_model out")

    @property
    def preset_settings(self) -> Mapping[str, Any]:
        """Settings of the preset; each is for the methods that have it."""
        return {} if self.preset is None else paper_settings(self.preset).settings

    @property
    def methods(self) -> tuple[str | Method, ...]:
        """The methods as a tuple; anoclip where none is named."""
        if self.method is None:
            return (DEFAULT_METHOD,)
        several = isinstance(self.method, Sequence) and not isinstance(self.method, str)
        return tuple(self.method) if several else (self.method,)  # type: ignore[arg-type, return-value]

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-serializable values, for manifests."""
        named = [
            one if isinstance(one, str) else {"name": one.name, **one.settings()} for one in self.methods
        ]
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**{name: _plain(value) for name, value in values.items()}, "method": named}

    def replace(self, **changes: Any) -> DetectorConfig:
        """The same options with some changed. Raises UsageError for an unknown name."""
        check_names(changes)
        return replace(self, **changes)


def make_reader(config: DetectorConfig, image_size: int) -> ImageLoader:
    """Return the image loader of a configuration for inputs of ``image_size`` pixels a side."""
    from clipspect.data.prepare import ImageLoader
    from clipspect.data.ranges import ValueRange
    from clipspect.data.transforms import ResizeSpec

    window = None if config.window is None else (float(config.window[0]), float(config.window[1]))
    return ImageLoader(
        ResizeSpec(image_size, config.aspect, config.interpolation),
        config.tile,
        config.max_pixels,
        ValueRange(config.bit_depth, window),
        load_roi(config.roi, config.ignore_border),
    )


def fill_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those of their preset, which the given ones replace.

    Raises:
        UsageError: an unknown preset.
    """
    if options.get("preset") is None:
        return dict(options)
    chosen = paper_settings(options["preset"])
    return {"method": chosen.methods[-1], **chosen.options, **options}


def check_bounds(config: Any) -> None:
    """Check every option of a dataclass against its bounds. Raises UsageError."""
    for one in declared_options(type(config)):
        spec, value = spec_of(one), getattr(config, one.name)
        lowest, bound = spec.at_least, spec.above
        if lowest is not None and not (isinstance(value, int) and value >= lowest):
            raise UsageError(f"{one.name}={value!r}: give a whole number of at least {lowest}")
        if bound is not None and not value > bound:
            raise UsageError(f"{one.name}={value!r}: give a number above {bound:g}")


def declared_options(declared: type) -> list[Field[Any]]:
    """Return the fields of a dataclass that :func:`option` made."""
    return [one for one in fields(declared) if "option" in one.metadata]


def spec_of(one: Field[Any]) -> OptionSpec:
    """The command-line form of a field that :func:`option` made."""
    spec = one.metadata["option"]
    assert isinstance(spec, OptionSpec)
    return spec


def check_names(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a name that is no option, with the nearest one."""
    refuse_unknown(options, [one.name for one in fields(DetectorConfig)])


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, RegionOfInterest):
        return value.digest
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
