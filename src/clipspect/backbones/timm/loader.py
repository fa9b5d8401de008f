"""From ``timm:NAME`` or a folder to a backbone: pretrained weights, a local file, or seeded random weights."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from clipspect.backbones.base import RANDOM
from clipspect.backbones.features import FeatureRequest
from clipspect.backbones.hub import WeightsFile, check_digest, hub_access, identify
from clipspect.backbones.timm.backbone import TimmBackbone, refuse_values
from clipspect.backbones.timm.tower import check_trunk, value_path_problem
from clipspect.errors import UsageError, WeightsError

PREFIX = "timm:"
WEIGHTS_FILE = "model.safetensors"
_CONFIG = "config.json"


class TimmLoader:
    """Loads ``timm:NAME``, ``timm:NAME.TAG``, ``timm:hf-hub:org/name`` and folders with timm's ``config.json``."""

    def check(self, model: str, request: FeatureRequest, *, needs_text: bool) -> None:
        """Refuse what a model cannot give before its weights are downloaded.

        Args:
            model: as the user typed it.
            request: what the methods need.
            needs_text: whether one of them compares images with sentences.

        Raises:
            UsageError: a method that needs text, an unknown name, another kind of model, or V-V tokens of a tower
                they are not defined for.
        """
        if needs_text:
            raise UsageError(
                f"{model} has no text tower, and the method compares images with sentences; choose a CLIP model, or a"
                " method without text: anomaly-dino, subspace, musc"
            )
        check_architecture(_known(model), model, request)

    def __call__(
        self, model: str, weights: str | None, *, image_size: int | None, device: str, seed: int
    ) -> TimmBackbone:
        """Load a backbone in float32.

        Args:
            model: ``timm:`` and a name of timm, with or without a pretrained tag; or a folder.
            weights: a tag, a checkpoint file (safetensors, or read with ``weights_only``), "random", or None for the
                name's own.
            image_size: input side in pixels; None for the model's own.
            device: where it runs.
            seed: of random weights.

        Raises:
            UsageError: an unknown name or another kind of model.
            WeightsError: weights that are not here, damaged, or of another architecture.
        """
        from timm.data.config import resolve_model_data_config

        name, file, kept = _known(model), None, _folder_config(model)
        if kept and weights is None:
            weights = str(Path(model) / WEIGHTS_FILE)
            if not Path(weights).is_file():
                raise WeightsError(f"{model} holds no weights; {WEIGHTS_FILE} is looked for")
        if weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                trunk = _create(name)
            label = f"{RANDOM} (seed {seed})"
        elif weights is not None and Path(weights).is_file():
            trunk = _create(name)
            check_trunk(trunk, model)
            _load_file(trunk, Path(weights), model)
            label = Path(weights).name
        else:
            tagged = _tagged(name, weights)
            with torch.device("meta"):
                check_trunk(_create(tagged), model)
            trunk, file = _download(tagged, model)
            label = tagged
        config = {**resolve_model_data_config(trunk), **kept.get("pretrained_cfg", {})}
        backbone = TimmBackbone(
            trunk,
            name=model,
            weights=label,
            mean=config["mean"],
            std=config["std"],
            image_size=image_size,
            device=device,
        )
        backbone.weights_file = file
        return backbone


load_timm = TimmLoader()


def check_architecture(name: str, model: str, request: FeatureRequest) -> None:
    """Refuse a request that timm's architecture ``name`` cannot serve, without its weights; ``model`` is for messages.

    Raises:
        UsageError: another kind of model, or V-V tokens of a tower they are not defined for.
    """
    with torch.device("meta"):
        trunk = _create(name)
    check_trunk(trunk, model)
    problem = value_path_problem(trunk)
    if (request.value_blocks or request.value_spans) and problem is not None:
        raise refuse_values(model, problem)
    request.resolved(len(trunk.blocks))


def _known(model: str) -> str:
    """The name below ``timm:``. Raises UsageError with a suggestion for an unknown one."""
    import timm

    config = _folder_config(model)
    name = str(config["architecture"]) if config else model.removeprefix(PREFIX)
    architecture = name.partition(".")[0]
    if not name.startswith("hf-hub:") and not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "names are those of timm.list_models()"
        raise UsageError(f"timm knows no model {architecture!r}; {hint}")
    return name


def _folder_config(model: str) -> dict[str, Any]:
    """Read timm's description of a model folder; empty for a name. Raises WeightsError for a damaged one."""
    path = Path(model) / _CONFIG
    if not path.is_file():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = config.get("pretrained_cfg") or {}
        sides = {key: tuple(kept[key]) for key in ("mean", "std") if key in kept}
        return {"architecture": config["architecture"], "pretrained_cfg": sides}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not timm's description of a model ({error})") from error


def tagged_name(model: str) -> str:
    """Name a model as timm does, with its pretrained tag, from ``timm:NAME``. Raises UsageError for an unknown one."""
    return _tagged(_known(model), None)


def _create(name: str) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError as error:  # other families do not know the argument
        raise UsageError(
            f"timm's {name} does not take images of any size; of timm, clipspect runs VisionTransformer and Eva models,"
            " such as vit_base_patch14_reg4_dinov2"
        ) from error


def _tagged(name: str, tag: str | None) -> str:
    """The name with a pretrained tag. Raises UsageError or WeightsError where there is none."""
    import timm

    if name.startswith("hf-hub:"):
        if tag is not None:
            raise UsageError(f"{name} brings its own weights; leave --weights out")
        return name
    architecture, _, own = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    tags = tags or [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    chosen = tag or own or (tags[0] if tags else "")
    if chosen not in tags:
        raise WeightsError(
            f"weights {chosen!r} for {architecture}: neither a file here nor a known tag; tags:"
            f" {', '.join(tags) or 'none'}; 'random' is a control"
        )
    return f"{architecture}.{chosen}" if chosen else architecture


def _download(name: str, model: str) -> tuple[Any, WeightsFile]:
    """Build a model with the weights of its repository, read as safetensors alone."""
    from huggingface_hub import hf_hub_download

    repository = weights_repository(name)
    try:
        with hub_access():
            path = Path(hf_hub_download(repository, WEIGHTS_FILE))
    except Exception as error:  # the hub client raises many kinds, all meaning "not to be had"
        raise WeightsError(
            f"the weights of {model} are not on this machine and could not be downloaded. Needed: {WEIGHTS_FILE} of the"
            f" repository {repository!r} on the Hugging Face hub. Fetch it on a connected machine and pass it with"
            " --weights FILE (Python: weights='FILE'), or use the model that ships with clipspect (--model tiny)."
        ) from error
    file = identify(path, repository)
    trunk = _create(name)
    _load_file(trunk, path, model)
    return trunk, file


def weights_repository(name: str) -> str:
    """Name the repository on the Hugging Face hub that holds a model's weights.

    Raises:
        WeightsError: its publisher keeps them elsewhere.
    """
    from timm.models import get_pretrained_cfg

    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        source = config.url if config is not None and config.url else "an unknown place"
        raise WeightsError(
            f"the weights of {name} are not on the Hugging Face hub but at {source}; fetch them and pass --weights FILE"
        )
    repository = str(config.hf_hub_id)
    return f"{repository}{name}" if repository.endswith("/") else repository


def _load_file(trunk: nn.Module, path: Path, model: str) -> None:
    """Load a local checkpoint of timm's or of the original publisher; every tensor must fit."""
    from timm.models import eva, vision_transformer

    check_digest(path)
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    except Exception as error:  # pickle's own error, for content that would be run
        raise WeightsError(f"{path} holds more than tensors and is not read: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    own = set(trunk.state_dict())
    try:
        if set(state) != own:
            family = eva if isinstance(trunk, eva.Eva) else vision_transformer
            state = family.checkpoint_filter_fn(state, trunk)
            state = {k: v for k, v in state.items() if k in own or not k.startswith("head")}
        trunk.load_state_dict(state)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        first = str(error).splitlines()[:3]
        raise WeightsError(f"{path} does not fit {model}: {' '.join(first)}") from error
