"""Loading of open_clip modules by model name, with errors that state the remedy."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from clipspect.backbones.base import RANDOM
from clipspect.backbones.hub import (
    WeightsFile,
    fetch_weights,
    hub_access,
    identify,
    is_release,
    weights_config,
)
from clipspect.backbones.openclip.plain_clip import LazyTokenizer, PlainCLIP, initialize, is_plain_config
from clipspect.backbones.openclip.towers import check_towers
from clipspect.backbones.openclip.weights import (
    check_safetensors,
    first_line,
    has_openai_marks,
    is_openai,
    load_weights,
    read_state,
)
from clipspect.backbones.presets import PRESETS
from clipspect.backbones.trunk import STRIDE, TRUNKS
from clipspect.errors import ClipspectError, UsageError, WeightsError, suggest

_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights."""

    network: nn.Module
    """In float32 on the CPU, in evaluation mode."""
    tokenizer: Any
    label: str
    """Label of the weights: "random (seed 0)", a tag or a file name."""
    file: WeightsFile | None = None
    """Source and SHA-256 of pretrained weights; None for random ones and for a user's own files."""


def build_model(model: str, weights: str | None, seed: int) -> LoadedModel:
    """Build an open_clip model with its weights.

    Args:
        model: a preset, an open_clip architecture, ``hf-hub:org/name``, a folder with ``open_clip_config.json``,
            or an OpenAI checkpoint file.
        weights: a pretrained tag, a checkpoint file, ``"random"``, or None for the model's default.
        seed: seed of random weights; unused otherwise.

    Raises:
        UsageError: an unknown architecture, or weights that the model does not accept.
        WeightsError: weights that are missing, damaged, or of another architecture.
    """
    if model in PRESETS:
        preset = PRESETS[model]
        model, weights = preset.architecture, weights or preset.weights
    with _quiet():
        if weights == RANDOM:
            return _random(model, seed)
        if model.startswith("hf-hub:"):
            return _from_hub(model, weights)
        if Path(model).is_dir():
            return _from_folder(Path(model), weights)
        if Path(model).is_file():
            return _from_openai_file(Path(model), weights)
        return _from_architecture(model, weights)


def _random(model: str, seed: int) -> LoadedModel:
    import open_clip

    if model.startswith("hf-hub:"):
        raise UsageError("random weights need an architecture that is known here; name an open_clip one")
    if Path(model).is_file():
        raise UsageError(f"{model} is a checkpoint; random weights go with an architecture or a folder")
    description = _plain_description(Path(model)) if (Path(model) / _CONFIG).is_file() else None
    if description is not None and "trunk" in description["model_cfg"]["vision_cfg"]:
        plain = _plain(description)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initialize(plain)
        return LoadedModel(plain.eval(), LazyTokenizer(plain.context_length), f"{RANDOM} (seed {seed})")
    name = f"local-dir:{model}" if Path(model).is_dir() else _known(model)
    check_towers(open_clip.get_model_config(name), model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    return LoadedModel(built.eval(), _tokenizer(name), f"{RANDOM} (seed {seed})")


def _from_architecture(name: str, weights: str | None) -> LoadedModel:
    import open_clip

    name = _known(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights is None:
        raise UsageError(
            f"{name} has no default weights; add --weights with one of its tags ({', '.join(tags) or 'none known'}),"
            f" a checkpoint file, or 'random' for a control"
        )
    if Path(weights).is_file():
        check_towers(open_clip.get_model_config(name), name)
        file = identify(Path(weights)) if is_release(Path(weights)) else None
        quick = is_openai(Path(weights))
        built = open_clip.create_model(name, force_quick_gelu=quick, pretrained_text=False)
        load_weights(built, Path(weights), f"the architecture {name}")
        return LoadedModel(built.eval(), _tokenizer(name), Path(weights).name, file)
    if weights not in tags:
        raise WeightsError(
            f"weights {weights!r} for {name}: neither a file here nor a known tag; tags: {', '.join(tags) or 'none'}"
        )
    check_towers(open_clip.get_model_config(name), name)
    config = weights_config(name, weights)
    tokenizer = _tokenizer(name)
    file = download_weights(name, weights)
    quick = bool(config.get("quick_gelu", False))
    prepared = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
    built = open_clip.create_model(
        name,
        load_weights=False,
        force_quick_gelu=quick,
        force_preprocess_cfg=prepared,
        pretrained_text=False,
    )
    load_weights(built, file.path, f"the architecture {name}")
    return LoadedModel(built.eval(), tokenizer, weights, file)


def download_weights(name: str, tag: str) -> WeightsFile:
    """Find an architecture's pretrained weights on this machine, or download them.

    Raises:
        WeightsError: they are neither here nor on the hub, or not what their publisher says.
    """
    config = weights_config(name, tag)
    try:
        return fetch_weights(config)
    except WeightsError:
        raise
    except Exception as error:  # open_clip and the hub client raise many types if weights are unavailable
        raise WeightsError(
            f"the weights {tag!r} of {name} are not on this machine and could not be downloaded. Needed:"
            f" {_source_in_words(config)}. Fetch it on a connected machine (clipspect models fetch) and pass it with"
            " --weights FILE (Python: weights='FILE'), or use the model that ships with clipspect (--model tiny)."
        ) from error


def _from_hub(model: str, weights: str | None) -> LoadedModel:
    import open_clip

    if weights is not None:
        raise UsageError(f"{model} brings its own weights; leave --weights out")
    repository = model.removeprefix("hf-hub:")
    try:
        with hub_access():
            check_towers(open_clip.get_model_config(model), model)
            tokenizer, file = _tokenizer(model), fetch_weights({"hf_hub": f"{repository}/"})
            built = open_clip.create_model(model, require_pretrained=True)
    except ClipspectError:
        raise
    except Exception as error:  # as above
        raise WeightsError(
            f"{model} is not on this machine and could not be downloaded. Needed: {_CONFIG} and"
            f" open_clip_model.safetensors of the repository {repository!r} on the Hugging Face hub. Put both into"
            " one folder and pass it with --model FOLDER."
        ) from error
    return LoadedModel(built.eval(), tokenizer, repository, file)


def _from_folder(folder: Path, weights: str | None) -> LoadedModel:
    if not (folder / _CONFIG).is_file():
        raise WeightsError(f"{folder} holds no {_CONFIG}; a model folder needs it beside its weights")
    if weights is None:
        found = [folder / f"open_clip_model.{kind}" for kind in ("safetensors", "bin", "pt")]
        found = [path for path in found if path.is_file()] or sorted(folder.glob("*.safetensors"))
        if not found:
            raise WeightsError(f"{folder} holds no weights; open_clip_model.safetensors is looked for")
        path = found[0]
    else:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"{path}: no such checkpoint file")
    try:
        plain = path.suffix == ".safetensors" and _plain_folder(folder, path)
        if plain:
            return LoadedModel(*plain, path.name)
        import open_clip

        name = f"local-dir:{folder}"
        check_towers(open_clip.get_model_config(name), str(folder))
        built = open_clip.create_model(name, load_weights=False, pretrained_text=False)
        tokenizer = _tokenizer(name)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{folder / _CONFIG}: not a model configuration ({first_line(error)})") from error
    load_weights(built, path, f"the configuration in {folder}")
    return LoadedModel(built.eval(), tokenizer, path.name)


def _plain_folder(folder: Path, path: Path) -> tuple[nn.Module, Any] | None:
    """Return the folder's model without open_clip, or None if its configuration needs more than a plain CLIP."""
    description = _plain_description(folder)
    if description is None:
        return None
    with torch.device("meta"):
        built = _plain(description)
    check_safetensors(path)
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    try:
        built.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit the configuration in {folder}: {first_line(error)}"
        ) from error
    return built.eval(), LazyTokenizer(built.context_length)


def _plain_description(folder: Path) -> dict[str, Any] | None:
    """Return the folder's configuration if it describes a plain CLIP, with or without a trunk."""
    description: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    if is_plain_config(description["model_cfg"]):
        return description
    if "trunk" in description["model_cfg"].get("vision_cfg", {}):
        raise WeightsError(
            f"{folder / _CONFIG}: a vision tower with a trunk needs one of {', '.join(TRUNKS)}, patch size {STRIDE},"
            " and no other keys than a plain CLIP's"
        )
    return None


def _plain(description: dict[str, Any]) -> PlainCLIP:
    built = PlainCLIP(description["model_cfg"])
    built.visual.preprocess_cfg = description.get("preprocess_cfg", {})
    return built


def _from_openai_file(path: Path, weights: str | None) -> LoadedModel:
    import open_clip

    if weights is not None:
        raise UsageError(
            f"{path} is a checkpoint itself; pass the architecture with --model and the file with --weights"
        )
    if (path.parent / _CONFIG).is_file():
        return _from_folder(path.parent, str(path))
    state = read_state(path)
    if not has_openai_marks(state):
        raise UsageError(
            f"{path} does not say which architecture it is; add it: --model ViT-B-16 --weights {path.name},"
            f" or put {_CONFIG} beside it"
        )
    try:
        built = open_clip.model.build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32)
    except (KeyError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"{path}: not a whole OpenAI checkpoint ({first_line(error)})") from error
    length = int(state["positional_embedding"].shape[0])
    tokenizer = open_clip.SimpleTokenizer(context_length=length)
    return LoadedModel(built.float().eval(), tokenizer, path.name)


def _tokenizer(name: str) -> Any:
    """open_clip's tokenizer of a model.

    Raises:
        UsageError: it needs the package transformers.
        WeightsError: its files are not here and cannot be downloaded.
    """
    import open_clip

    try:
        with hub_access():
            return open_clip.get_tokenizer(name)
    except (ImportError, NameError, TypeError) as error:  # open_clip sets the missing package to None
        raise UsageError(
            f"the tokenizer of {name} needs the package transformers: pip install 'clipspect[siglip]'"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"the tokenizer of {name} is not on this machine and could not be downloaded: {first_line(error)}"
        ) from error


def _known(name: str) -> str:
    import open_clip

    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        names = (
            sorted(PRESETS)
            + [m for m in open_clip.list_models() if m.split("-")[0] == name.split("-")[0]][:12]
        )
        raise UsageError(
            f"unknown model {name!r}; {suggest(name, names)}try one of: {', '.join(dict.fromkeys(names))},"
            f" any other open_clip architecture, hf-hub:org/name, or a local folder or checkpoint file"
        )
    return name


def _source_in_words(config: dict[str, Any]) -> str:
    if config.get("hf_hub"):
        repository = str(config["hf_hub"]).rstrip("/")
        return f"open_clip_model.safetensors of the repository {repository!r} on the Hugging Face hub"
    file = str(config.get("url", "")).rsplit("/", 1)[-1]
    return f"the file {file!r} that open_clip's page of pretrained models names"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress library logs of problems that clipspect reports or raises itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
