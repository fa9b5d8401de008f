"""SubspaceAD: distance of each patch from a linear subspace of known-good patches.

"SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling" (official code CLendering/SubspaceAD);
docs/methods.md §9. Tokens are the mean of the hidden states (B, H, W, width) of several blocks; held to the official
code by ``tests/parity2/test_subspace.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipspect.backbones.features import FeatureRequest, Features, block_numbers, parse_blocks
from clipspect.methods.base import MethodContext, Scores, check_choice, check_range, setting
from clipspect.methods.few_shot import FewShot, distinct_rows, gaussian_smooth, highest_mean
from clipspect.methods.scoring import upsample, verdict_layers
from clipspect.methods.visual import reference_notes

Rule = Literal["reconstruction", "euclidean", "mahalanobis", "cosine"]
_KEPT_FITS = 4
"""An image's tiles leave out the same references and come in several batches."""
_LEAST_VARIANCE = 1e-6
"""Added to the variances of "mahalanobis", as in the official code."""
_BLUR_SIGMA, _BLUR_RADIUS = 4.0, 1
"""The official blur: a Gaussian of sigma 4 cut to 3×3, close to a mean filter."""


@dataclass(frozen=True)
class Subspace:
    """Mean and principal components of known-good patches."""

    mean: Tensor
    """(D,) float64."""
    components: Tensor
    """(D, K) float64, orthonormal columns."""
    eigenvalues: Tensor
    """(D,) float64 variances of all components, descending."""
    dropped: int = 0
    """Number of first components that are left out of :attr:`components`."""

    @property
    def kept_variances(self) -> Tensor:
        """(K,) float64 variances of the components."""
        return self.eigenvalues[self.dropped : self.dropped + self.components.shape[1]].clamp_min(0)

    @property
    def mean_residual(self) -> float:
        """Mean squared residual of the patches it was fitted to."""
        return float((self.eigenvalues.clamp_min(0).sum() - self.kept_variances.sum()).clamp_min(0))

    def mean_score(self, rule: Rule) -> float:
        """Mean score of the patches it was fitted to; for "cosine", 1, the half of its range."""
        if rule == "reconstruction":
            return self.mean_residual
        inside = float(self.kept_variances.sum())
        return {"euclidean": inside, "mahalanobis": float(len(self.kept_variances)), "cosine": 1.0}[rule]

    def scores(self, tokens: Tensor, rule: Rule) -> Tensor:
        """Score tokens by one of the official rules.

        Args:
            tokens: (..., D).
            rule: "reconstruction": :meth:`residuals`. "euclidean": squared length inside the subspace. "mahalanobis":
                the same, each component divided by its variance. "cosine": 1 − cosine of token and reconstruction.

        Returns:
            (...) in the tokens' dtype.
        """
        if rule == "reconstruction":
            return self.residuals(tokens)
        components, mean = self.components.to(tokens.dtype), self.mean.to(tokens.dtype)
        inside = (tokens - mean) @ components
        if rule == "euclidean":
            return inside.square().sum(-1)
        if rule == "mahalanobis":
            return (inside.square() / (self.kept_variances.to(tokens.dtype) + _LEAST_VARIANCE)).sum(-1)
        return 1 - F.cosine_similarity(tokens, mean + inside @ components.T, dim=-1)

    def residuals(self, tokens: Tensor) -> Tensor:
        """Squared length of each token's part outside the subspace.

        Args:
            tokens: (..., D).

        Returns:
            (...) in the tokens' dtype.
        """
        components = self.components.to(tokens.dtype)
        centered = tokens - self.mean.to(tokens.dtype)
        outside = centered - (centered @ components) @ components.T
        return outside.square().sum(-1)


@dataclass(frozen=True)
class Moments:
    """Sums over the patches of reference images, from which a subspace is computed without an image."""

    tokens: Tensor
    """(R, H, W, D) of R reference images."""
    shift: Tensor
    """(D,) float64, near the mean; sums are of tokens minus it, so that no digits are lost."""
    first: Tensor
    """(D,) float64 sum."""
    second: Tensor
    """(D, D) float64 sum of outer products."""
    whole: Subspace
    """Fitted to all references."""
    fits: dict[tuple[int, ...], Subspace] = field(default_factory=dict, repr=False, compare=False)
    """Rows → subspace of these references, of the latest :data:`_KEPT_FITS`."""


@dataclass(frozen=True)
class SubspaceAD(FewShot):
    """Squared distance from the PCA subspace of known-good patches. Small memory, any number of references."""

    name: ClassVar[str] = "subspace"

    blocks_from: float = setting(
        0.55,
        "Hidden states are averaged over blocks deeper than this share of the backbone; see blocks_to.",
    )
    blocks_to: float = setting(
        0.725,
        "Depth of the last of these blocks, as a share; by default blocks 23 to 29 of 40, as published.",
    )
    blocks: str = setting(
        "",
        "Blocks in place of that span: numbers such as 7,8, or relative depths such as 50%.",
    )
    variance: float = setting(0.99, "Share of the variance the subspace keeps; the rest is the distance.")
    components: int = setting(0, "Number of components in place of that share; 0 = by the share.")
    drop_components: int = setting(0, "Number of first components that do not belong to the subspace.")
    rule: Rule = setting(
        "reconstruction",
        'Score of a patch: "reconstruction" (squared distance from the subspace, the official default), '
        '"euclidean" and "mahalanobis" (distance from the mean inside it), or "cosine" (angle to the '
        "projection).",
    )
    top_share: float = setting(0.01, "Share of the map's pixels, the highest, whose mean is the image score.")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_range("blocks_to", self.blocks_to, 1e-6, 1)
        check_range("blocks_from", self.blocks_from, 0, self.blocks_to)
        if self.blocks:
            parse_blocks(self.blocks)
        check_range("variance", self.variance, 0.01, 0.999999)
        check_range("components", self.components, 0, 1e6)
        check_range("drop_components", self.drop_components, 0, 1e6)
        check_choice("rule", self.rule, ("reconstruction", "euclidean", "mahalanobis", "cosine"))
        check_range("top_share", self.top_share, 1e-6, 1)

    def request(self) -> FeatureRequest:
        """Hidden states of the blocks."""
        if self.blocks:
            numbers, spans = parse_blocks(self.blocks)
        else:
            numbers, spans = frozenset(), frozenset([(self.blocks_from, self.blocks_to)])
        return super().request() | FeatureRequest(hidden_blocks=numbers, hidden_spans=spans)

    def tokens(self, features: Features) -> Tensor:
        """(B, H, W, D) mean of the hidden states over the blocks."""
        request = self.request()
        blocks = block_numbers(request.hidden_blocks, request.hidden_spans, features.depth)
        return torch.stack([features.hidden_patches[block] for block in sorted(blocks)]).mean(0)

    def prepare_references(self, references: Features) -> Moments:
        """Sums over all references, and the subspace they span."""
        tokens = self.tokens(references)
        shift = tokens.double().flatten(0, 2).mean(0)
        count, first, second = _sums(tokens, shift)
        return Moments(tokens, shift, first, second, self.fit(count, first, second, shift))

    def fit(self, count: int, first: Tensor, second: Tensor, shift: Tensor) -> Subspace:
        """Compute the subspace from the number of patches and their shifted sums."""
        offset = first / count
        covariance = (second - count * torch.outer(offset, offset)) / max(count - 1, 1)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        kept = self.components or kept_components(values, self.variance)
        dropped = min(self.drop_components, kept - 1)  # one component is always kept
        return Subspace(shift + offset, vectors[:, dropped:kept], values, dropped)

    def score(self, features: Features, context: MethodContext) -> Scores:
        """Residual map, upsampled and blurred; the mean of its highest pixels is the image score.

        Residuals r become r / (r + c) with c the references' mean residual: ½ is a typical known-good patch.
        """
        references = self.references(features, context)
        known: Moments = context.reference_state or self.prepare_references(references)
        tokens, allowed = self.tokens(features), self.allowed(features, context)
        grids = tokens.new_zeros(tokens.shape[:3])
        scales = tokens.new_ones(len(tokens))
        for rows, images in distinct_rows(allowed).items():
            if not rows:  # the row's note says that no other image was there
                continue
            subspace = self.without(known, rows)
            grids[images] = subspace.scores(tokens[images], self.rule).clamp_min(0)
            scales[images] = max(subspace.mean_score(self.rule), 1e-12)
        blurred = self.finish(grids, context.size)
        image = highest_mean(blurred.flatten(1), self.top_share)
        wide = scales.view(-1, 1, 1)
        notes = reference_notes(allowed)
        maps = blurred / (blurred + wide)
        layers = verdict_layers(grids / (grids + wide))
        return Scores(image / (image + scales), maps, notes, layers=layers)

    def without(self, known: Moments, rows: tuple[int, ...]) -> Subspace:
        """Return the subspace of some of the references: all but the image itself, its tiles and copies."""
        if len(rows) == len(known.tokens):
            return known.whole
        if (found := known.fits.get(rows)) is not None:
            return found
        others = sorted(set(range(len(known.tokens))) - set(rows))
        few = len(rows) < len(others)
        count, first, second = _sums(known.tokens[list(rows) if few else others], known.shift)
        if not few:
            total = known.tokens[..., 0].numel()
            count, first, second = total - count, known.first - first, known.second - second
        fitted = self.fit(count, first, second, known.shift)
        known.fits[rows] = fitted
        for old in list(known.fits)[:-_KEPT_FITS]:
            known.fits.pop(old, None)
        return fitted

    def finish(self, grids: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W) residuals → (B, S, T): brought to the input size, then blurred."""
        maps = upsample(grids, size, align_corners=False)
        return gaussian_smooth(maps, _BLUR_SIGMA, _BLUR_RADIUS, repeat_edge=False)


def kept_components(eigenvalues: Tensor, variance: float) -> int:
    """Smallest number of components whose share of the variance reaches ``variance``."""
    shares = eigenvalues.cumsum(0) / eigenvalues.sum().clamp_min(1e-300)
    return min(int((shares < variance).sum()) + 1, len(eigenvalues))


def _sums(tokens: Tensor, shift: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number of patches, sum and sum of outer products of (R, H, W, D) tokens minus a shift, in float64."""
    first, second = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
    for image in tokens:  # one at a time, so that the float64 copy is small
        centered = image.flatten(0, 1).double() - shift
        first = first + centered.sum(0)
        second = second + centered.T @ centered
    return tokens[..., 0].numel(), first, second
