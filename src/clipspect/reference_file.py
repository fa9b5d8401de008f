"""Encoded references as a file: safetensors with a manifest in its header, checked before it is used. No pickle.

What is stored are features, so a file serves the backbone, input size and blocks it was made with and no other.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clipspect import __version__
from clipspect.backbones.features import FeatureRequest, Features
from clipspect.backbones.sources import Sources
from clipspect.errors import ReferencesError
from clipspect.postprocess.calibration import Calibration

_FORMAT = "clipspect references 3"
"""3: each row's source; 2: the header holds a digest of everything else in the file."""
_OLD_FORMAT = "clipspect references 2"
_KEY = "clipspect"
_VISUAL = "visual."
"""How the names of a second backbone's tensors start."""


@dataclass(frozen=True)
class Manifest:
    """What references were made of, and with what."""

    object: str
    """The object's clean name."""
    model: str
    """The backbone's name, for people."""
    fingerprint: str
    """The backbone's fingerprint: weights and precision."""
    image_size: int
    """Input side in pixels."""
    preparation: str
    """How images were fitted to it ("squash, bicubic"); in words, compared as a whole."""
    sources: Mapping[str, str]
    """File name → SHA-256 of its bytes."""
    count: int
    """Encoded pieces: images, or their tiles."""
    version: str = __version__
    """clipspect's own."""


@dataclass(frozen=True)
class References:
    """Encoded references and their manifest."""

    features: Features
    manifest: Manifest
    request: FeatureRequest
    """The request they were encoded with, resolved."""
    calibrations: Mapping[str, Calibration]
    """method → calibration on these images; none where there were fewer than three."""

    def check(
        self,
        path: Path,
        *,
        object: str,
        model: str,
        fingerprint: str,
        image_size: int,
        preparation: str,
        request: FeatureRequest,
    ) -> Features:
        """The features, where they fit what they are to be used for.

        Args:
            path: of the file, for the message.
            object: clean name of what is on the images.
            model: name of the backbone in use, for the message.
            fingerprint: of the backbone in use.
            image_size: its input side.
            preparation: how images are fitted to it.
            request: what the methods in use need, unresolved.

        Raises:
            ReferencesError: another backbone, size, preparation or object, or blocks that are not in the file.
        """
        made = self.manifest
        again = f"build the references again with these settings (clipspect references build … -o {path})"
        pairs = [
            ("object", made.object, object),
            ("image size", made.image_size, image_size),
            ("preparation of images", made.preparation, preparation),
        ]
        if made.fingerprint != fingerprint:
            other = (
                f"another backbone ({made.model}; in use: {model})"
                if made.model != model
                else f"other weights of {model}, or in another precision"
            )
            raise ReferencesError(f"{path} was made with {other}; {again}")
        for what, there, here in pairs:
            if there != here:
                raise ReferencesError(f"{path} was made for another {what}: {there!r}, not {here!r}; {again}")
        missing = _missing(self.request, _resolved(request, self.features))
        if missing:
            raise ReferencesError(
                f"{path} was made for another method: it lacks {', '.join(missing)}; {again}"
            )
        return self.features


def save_references(
    path: Path,
    features: Features,
    manifest: Manifest,
    request: FeatureRequest,
    calibrations: Mapping[str, Calibration] = MappingProxyType({}),
) -> None:
    """Write references, whole or not at all.

    Args:
        path: of the file, replaced where it exists.
        features: of the reference images.
        manifest: what they are.
        request: what they were encoded with.
        calibrations: method → calibration on these images.

    Raises:
        ReferencesError: the file cannot be written.
    """
    header = {
        "format": _FORMAT,
        "manifest": asdict(manifest),
        "request": _request_to_json(_resolved(request, features)),
        "grid": features.grid,
        "depth": features.depth,
        "visual_depth": None if features.visual is None else features.visual.depth,
        "sources": None if features.sources is None else features.sources.keys,
        "calibrations": {method: one.to_dict() for method, one in calibrations.items()},
    }
    tensors = _tensors(features)
    header["digest"] = _digest(header, tensors)
    data = save(tensors, {_KEY: json.dumps(header, ensure_ascii=False)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
            temporary.write(data)
        Path(temporary.name).replace(path)
    except OSError as error:
        raise ReferencesError(f"{path} cannot be written: {error.strerror or error}") from error


def load_references(path: Path, device: torch.device | str = "cpu") -> References:
    """Read references; :meth:`References.check` says whether they may be used.

    Raises:
        ReferencesError: no such file, damaged (its SHA-256 is checked), or not clipspect's.
    """
    if not path.is_file():
        raise ReferencesError(f"{path}: no such file of references")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as stored:
            header = json.loads((stored.metadata() or {}).get(_KEY, "null"))
            if not isinstance(header, dict) or header.get("format") not in (_FORMAT, _OLD_FORMAT):
                raise ReferencesError(
                    f"{path} is not a file of clipspect references, or one of another version of it"
                )
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        if header.pop("digest", None) != _digest(header, tensors):
            raise ReferencesError(f"{path} is damaged: it is not what was written; copy or build it again")
        manifest = Manifest(**header["manifest"])
        features = _features(tensors, tuple(header["grid"]), int(header["depth"]), header.get("visual_depth"))
        sources = _sources(header, manifest, tensors.get("signatures"))
        features = replace(features, sources=sources)
        request = _request_from_json(header["request"])
        stored_calibrations = header.get("calibrations", {})
        calibrations = {m: Calibration.from_dict(one) for m, one in stored_calibrations.items()}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ReferencesError(f"{path} is damaged or not a file of clipspect references ({error})") from error
    if len(features) != manifest.count or not all(t.isfinite().all() for t in tensors.values()):
        raise ReferencesError(f"{path} is damaged: it does not hold the {manifest.count} references it names")
    return References(features, manifest, request, calibrations)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the header as JSON keeps it and every byte of the tensors."""
    digest = hashlib.sha256(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sources(header: Mapping[str, Any], manifest: Manifest, signatures: Tensor | None) -> Sources | None:
    """The image each row comes from. A file of format 2 tells it where images were not cut into tiles."""
    keys = header.get("sources")
    if header["format"] == _OLD_FORMAT and len(manifest.sources) == manifest.count:
        keys = [(digest, 0) for digest in manifest.sources.values()]
    if keys is None:
        return None
    return Sources(
        tuple(str(digest) for digest, _ in keys),
        tuple(int(tile) for _, tile in keys),
        None if signatures is None else signatures.cpu(),
    )


def _tensors(features: Features) -> dict[str, Tensor]:
    tensors = {"image": features.image}
    if features.sources is not None and features.sources.signatures is not None:
        tensors["signatures"] = features.sources.signatures
    for name in ("value_patches", "ordinary_patches", "hidden_patches", "windows"):
        tensors |= {f"{name}.{key}": tensor for key, tensor in getattr(features, name).items()}
    for name in ("views", "unprojected", "trunk"):
        if getattr(features, name) is not None:
            tensors[name] = getattr(features, name)
    if features.visual is not None:
        tensors |= {f"{_VISUAL}{name}": tensor for name, tensor in _tensors(features.visual).items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _features(tensors: dict[str, Tensor], grid: Any, depth: int, visual_depth: int | None) -> Features:
    visual = {name.removeprefix(_VISUAL): t for name, t in tensors.items() if name.startswith(_VISUAL)}

    def each(name: str) -> dict[int, Tensor]:
        prefix = f"{name}."
        return {int(key.removeprefix(prefix)): t for key, t in tensors.items() if key.startswith(prefix)}

    return Features(
        tensors["image"],
        (int(grid[0]), int(grid[1])),
        depth,
        value_patches=each("value_patches"),
        ordinary_patches=each("ordinary_patches"),
        hidden_patches=each("hidden_patches"),
        views=tensors.get("views"),
        windows=each("windows"),
        unprojected=tensors.get("unprojected"),
        trunk=tensors.get("trunk"),
        visual=_features(visual, grid, visual_depth, None) if visual_depth is not None else None,
    )


def _resolved(request: FeatureRequest, features: Features) -> FeatureRequest:
    """The request with the block numbers of the backbone, or of the two, that made the features."""
    return request.resolved(features.depth, None if features.visual is None else features.visual.depth)


def _request_to_json(request: FeatureRequest) -> dict[str, Any]:
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    values["visual"] = None if request.visual is None else _request_to_json(request.visual)
    return {name: sorted(v) if isinstance(v, frozenset) else v for name, v in values.items()}


def _request_from_json(values: dict[str, Any]) -> FeatureRequest:
    sets: dict[str, Any] = {name: frozenset(v) if isinstance(v, list) else v for name, v in values.items()}
    if sets.get("visual") is not None:
        sets["visual"] = _request_from_json(sets["visual"])
    return FeatureRequest(**sets)


def _missing(stored: FeatureRequest, wanted: FeatureRequest) -> list[str]:
    """What of the wanted features is not among the stored ones, in words."""
    missing = [f"V-V tokens of block {b}" for b in sorted(wanted.value_blocks - stored.value_blocks)]
    missing += [
        f"ordinary tokens of block {b}" for b in sorted(wanted.ordinary_blocks - stored.ordinary_blocks)
    ]
    missing += [f"hidden states of block {b}" for b in sorted(wanted.hidden_blocks - stored.hidden_blocks)]
    missing += [f"windows of {size} patches" for size in sorted(wanted.windows - stored.windows)]
    if wanted.reference_rotations != stored.reference_rotations:
        missing.append(f"{wanted.reference_rotations} rotations of each image")
    if wanted.unprojected and not stored.unprojected:
        missing.append("tokens before the projection")
    if wanted.value_blocks and stored.value_blocks and wanted.start_block != stored.start_block:
        missing.append(f"V-V tokens that start at block {wanted.start_block}")
    if wanted.visual is not None:
        missing += _missing(stored.visual or FeatureRequest(), wanted.visual)
    return missing
