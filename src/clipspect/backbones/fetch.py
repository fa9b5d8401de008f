"""Download what a model needs and write a folder that loads offline on another machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspect.backbones.hub import file_sha256, hub_access, weights_config
from clipspect.backbones.presets import PRESETS, TINY_FOLDER
from clipspect.errors import UsageError, WeightsError

FOLDER_FILE = "clipspect_model.json"
"""What a fetched folder is and the input size it runs at."""
TIMM_CONFIG = "config.json"
"""timm's own description of a model folder."""
_OPENCLIP_CONFIG = "open_clip_config.json"
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
"""Files a tokenizer of transformers may consist of; a repository has some of them."""


@dataclass(frozen=True)
class FetchedFile:
    """A file of a fetched model."""

    path: Path
    size: int
    """In bytes."""
    sha256: str
    """Hexadecimal."""


def fetch_model(name: str, folder: Path | None = None) -> list[FetchedFile]:
    """Download the files of a model, and copy them into a folder.

    Args:
        name: a preset of ``clipspect models``, or ``timm:NAME``.
        folder: new or empty; it then loads by ``--model FOLDER`` without a network. None = the hub's cache alone,
            where ``--model NAME`` finds the files.

    Returns:
        The files, the weights first.

    Raises:
        UsageError: an unknown name, or a folder that holds something.
        WeightsError: files that cannot be downloaded; the message says which.
    """
    preset = PRESETS.get(name)
    architecture = name if preset is None else preset.architecture
    if preset is None and not name.startswith("timm:"):
        raise UsageError(f"{name!r} is not a preset; fetch takes one of {', '.join(PRESETS)}, or timm:NAME")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; name another one with --to")
    if architecture == str(TINY_FOLDER):
        files = {path.name: path for path in sorted(TINY_FOLDER.iterdir()) if path.is_file()}
        description: dict[str, Any] | None = None
        described = ""
    elif architecture.startswith("timm:"):
        files, described, description = _timm_files(architecture)
    else:
        assert preset is not None
        assert preset.weights is not None
        files, described, description = _openclip_files(architecture, preset.weights)
    if folder is None:
        return _facts(files.values())
    folder.mkdir(parents=True, exist_ok=True)
    written = [_copy(path, folder / target) for target, path in files.items()]
    facts = _facts(written)
    for fact in facts:
        beside = fact.path.with_name(f"{fact.path.name}.sha256")
        if fact.path.name.startswith(("open_clip_model", "model.")) and not beside.exists():
            beside.write_text(f"{fact.sha256}  {fact.path.name}\n", encoding="utf-8")
    if description is not None:
        _write_json(folder / described, description)
    about = {
        "model": name,
        "image_size": None if preset is None else preset.image_size,
        "license": license_of(name),
        "files": {fact.path.name: {"size": fact.size, "sha256": fact.sha256} for fact in facts},
    }
    _write_json(folder / FOLDER_FILE, about)
    return facts


def license_of(name: str) -> str:
    """License of a model's weights, as its preset or timm states it; "not stated" otherwise."""
    if name in PRESETS:
        return PRESETS[name].license
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name.removeprefix("timm:"))
    return str(config.license) if config is not None and config.license else "not stated"


def folder_image_size(folder: Path) -> int | None:
    """Input side that a fetched folder was made for; None for other folders.

    Raises:
        WeightsError: its description is damaged.
    """
    path = folder / FOLDER_FILE
    if not path.is_file():
        return None
    try:
        size = json.loads(path.read_text(encoding="utf-8"))["image_size"]
        return None if size is None else int(size)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch the model again") from error


def _timm_files(architecture: str) -> tuple[dict[str, Path], str, dict[str, Any]]:
    """Files of a timm model by their name in the folder; name and content of its description."""
    from timm.models import get_pretrained_cfg

    from clipspect.backbones.timm.loader import WEIGHTS_FILE, tagged_name, weights_repository

    name = tagged_name(architecture)
    if name.startswith("hf-hub:"):
        raise UsageError(f"{name} is a repository of the hub itself; download it and pass --model FOLDER")
    path = _download(weights_repository(name), WEIGHTS_FILE, architecture)
    config = get_pretrained_cfg(name)
    assert config is not None
    kept = {key: config.to_dict()[key] for key in ("tag", "mean", "std", "input_size", "license")}
    return {WEIGHTS_FILE: path}, TIMM_CONFIG, {"architecture": name.partition(".")[0], "pretrained_cfg": kept}


def _openclip_files(architecture: str, tag: str) -> tuple[dict[str, Path], str, dict[str, Any]]:
    """Files of an open_clip model with pretrained weights; name and content of its description."""
    import open_clip

    from clipspect.backbones.openclip.checkpoints import download_weights

    config = weights_config(architecture, tag)
    weights = download_weights(architecture, tag).path
    model: dict[str, Any] = dict(open_clip.get_model_config(architecture))
    if config.get("quick_gelu"):
        model["quick_gelu"] = True
    files = {f"open_clip_model{weights.suffix}": weights}
    tokenizer = model["text_cfg"].get("hf_tokenizer_name")
    if tokenizer:
        files |= _tokenizer_files(tokenizer, architecture)
    preprocess = {
        key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config
    }
    return files, _OPENCLIP_CONFIG, {"model_cfg": model, "preprocess_cfg": preprocess}


def _tokenizer_files(repository: str, model: str) -> dict[str, Path]:
    from huggingface_hub.errors import EntryNotFoundError

    found = {}
    for name in _TOKENIZER_FILES:
        try:
            found[name] = _download(repository, name, model)
        except WeightsError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
    if not found:
        raise WeightsError(f"the repository {repository!r} holds no tokenizer, which {model} needs")
    return found


def _download(repository: str, file: str, model: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    try:
        with hub_access():
            return Path(hf_hub_download(repository, file))
    except GatedRepoError as error:
        raise WeightsError(
            f"{model}: the repository {repository!r} is gated; accept its license on its page, then log in"
            " (hf auth login, or the environment variable HF_TOKEN)"
        ) from error
    except Exception as error:  # the hub client raises many kinds, all meaning "not to be had"
        raise WeightsError(
            f"{model}: {file} of the repository {repository!r} could not be downloaded from the Hugging Face hub;"
            f" fetch it on a connected machine ({type(error).__name__})"
        ) from error


def _copy(source: Path, target: Path) -> Path:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise WeightsError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _facts(paths: Iterable[Path]) -> list[FetchedFile]:
    return [FetchedFile(path, path.stat().st_size, file_sha256(path)) for path in paths]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
