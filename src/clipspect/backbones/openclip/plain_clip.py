"""PlainCLIP: CLIP's two transformers under open_clip's own names, for model folders that need nothing else.

Importing open_clip imports torchvision, timm and torch's compiler with it, two thirds of the time from the shell to a
image's score (docs/speed.md). A folder whose configuration uses only the keys below, such as the model in
the wheel, loads without it; every other model is open_clip's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from clipspect.backbones.trunk import STRIDE, TRUNKS, Trunk

VISION_KEYS = frozenset({"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "trunk"})
INITIAL_SCALE = 2.302585  # ln 10: CLIP's own 14.3 saturates early with two anchors
TEXT_KEYS = frozenset({"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"})


def is_plain_config(config: Mapping[str, Any]) -> bool:
    """Whether an open_clip ``model_cfg`` asks for nothing but what :class:`PlainCLIP` has."""
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not (isinstance(vision, Mapping) and isinstance(text, Mapping)):
        return False
    numbers = [vision.get(key, 1) for key in ("image_size", "patch_size", "width", "layers")]
    return (
        config.keys() <= {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
        and vision.keys() <= VISION_KEYS
        and text.keys() <= TEXT_KEYS
        and all(isinstance(number, int) for number in numbers)
        and ("trunk" not in vision or (vision["trunk"] in TRUNKS and numbers[1] == STRIDE))
    )


class QuickGELU(nn.Module):
    """OpenAI's approximation: x · σ(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity()
        self.ln_2 = nn.LayerNorm(width)
        parts = (
            ("c_fc", nn.Linear(width, inner)),
            ("gelu", activation()),
            ("c_proj", nn.Linear(inner, width)),
        )
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ls_2 = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        normed = self.ln_1(x)
        attended: Tensor = self.attn(normed, normed, normed, need_weights=False, attn_mask=attn_mask)[0]
        x = x + attended
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, layers: int, *block: Any) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(layers))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class PlainVision(nn.Module):
    """The vision transformer. :func:`~clipspect.backbones.openclip.value_attention.encode_vit` runs it."""

    def __init__(self, embed_dim: int, activation: type[nn.Module], config: Mapping[str, Any]) -> None:
        super().__init__()
        size, patch, width = (
            config.get(k, d) for k, d in (("image_size", 224), ("patch_size", 16), ("width", 768))
        )
        self.image_size, self.patch_size = (size, size), (patch, patch)
        self.grid_size = (size // patch, size // patch)
        self.trunk = Trunk(config["trunk"]) if "trunk" in config else None
        """Where there is one, a patch token is a linear map of its features instead of the patch's pixels."""
        if self.trunk is None:
            self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        else:
            self.conv1 = nn.Conv2d(sum(self.trunk.channels), width, 1, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(
            torch.empty(self.grid_size[0] * self.grid_size[1] + 1, width)
        )
        self.patch_dropout = nn.Identity()
        self.ln_pre = nn.LayerNorm(width)
        heads, ratio = width // config.get("head_width", 64), config.get("mlp_ratio", 4.0)
        self.transformer = Transformer(config.get("layers", 12), width, heads, ratio, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))
        self.attn_pool, self.pool_type = None, "tok"

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and patch tokens of (B, 1 + N, C) after ``ln_post``, as open_clip's ``_pool`` gives them."""
        x = self.ln_post(x)
        return x[:, 0], x[:, 1:]


class PlainCLIP(nn.Module):
    """Both towers. Its parameters are not initialised: load a state dict, whose keys are open_clip's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build from an open_clip ``model_cfg`` for which :func:`is_plain_config` holds."""
        super().__init__()
        activation = QuickGELU if config.get("quick_gelu") else nn.GELU
        text, embed_dim = config["text_cfg"], config["embed_dim"]
        width, length = text.get("width", 512), int(text.get("context_length", 77))
        self.context_length = length
        self.visual = PlainVision(embed_dim, activation, config["vision_cfg"])
        heads, ratio = text.get("heads", 8), text.get("mlp_ratio", 4.0)
        self.transformer = Transformer(text.get("layers", 12), width, heads, ratio, activation)
        # from_pretrained, because drawing a normal distribution on the meta device imports torch's compiler
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(text.get("vocab_size", 49408), width))
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.text_pool_type = "argmax"
        self.logit_scale = nn.Parameter(torch.empty(()))
        mask = torch.full((length, length), float("-inf"), device="cpu").triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)


def initialize(model: PlainCLIP) -> None:
    """Draw CLIP's own initial weights from torch's global generator; a trunk's keep the scale of its input."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    visual = model.visual
    width, text_width = len(visual.class_embedding), model.token_embedding.weight.shape[1]
    for part in (visual.class_embedding, visual.positional_embedding, visual.proj):
        nn.init.normal_(part, std=width**-0.5)
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    nn.init.normal_(model.positional_embedding, std=0.01)
    nn.init.normal_(model.text_projection, std=text_width**-0.5)
    nn.init.constant_(model.logit_scale, INITIAL_SCALE)
    model.token_embedding.requires_grad_(True)
    if visual.trunk is not None:
        for module in visual.trunk.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)


class LazyTokenizer:
    """open_clip's tokenizer, imported with the first sentence: anchors that lie in the cache need none."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    @cached_property
    def own(self) -> Any:
        """The ``open_clip.SimpleTokenizer`` itself."""
        import open_clip

        return open_clip.SimpleTokenizer(context_length=self.context_length)

    def __call__(self, sentences: list[str]) -> Tensor:
        """(P, context) token ids."""
        tokens: Tensor = self.own(sentences)
        return tokens
