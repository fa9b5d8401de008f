"""Training captions: clipspect's prompt sentences over real and nonsense nouns, some naming defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import open_clip
import torch
from torch import Tensor

from clipspect.prompts import PromptSet, load_prompts
from clipspect.training.render import DEFECTS

_DEFECT_STATES = ("{noun} with a {word}", "{noun} with {word}", "{word} on a {noun}")
_WORDS = [word for defect in DEFECTS.values() for word in defect.words]
_NAMED_DEFECT_SHARE = 0.2
_SCENE_NOUN_SHARE = 0.4


@dataclass(frozen=True)
class CaptionBatch:
    """Token ids of one step's captions: G anchor groups of C captions per side, one caption per defect kind."""

    normal: Tensor
    """(G, C, context)."""
    abnormal: Tensor
    """(G, C, context)."""
    kinds: Tensor
    """(number of defect kinds, context), in the order of ``DEFECTS``."""


class CaptionSource:
    """Source of captions. Most nouns are nonsense, so that text embeddings depend on the state, not the object."""

    def __init__(self, context_length: int) -> None:
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        self._context = context_length
        table = load_prompts()
        self._sets = [table.prompt_set(name) for name in ("anoclip", "winclip", "plain")]
        self._weights = torch.tensor([0.7, 0.2, 0.1])
        self._domains = list(table.domains.values())
        self._words = [w[:-4] for w in self._tokenizer.encoder if w.endswith("</w>") and w[:-4].isalpha()]
        self._encode_word = cache(self._tokenizer.encode)

    def draw(
        self, scene_nouns: list[str], groups: int, captions: int, generator: torch.Generator
    ) -> CaptionBatch:
        """Draw captions for one step; ``scene_nouns`` are the object names of the step's images."""
        normal, abnormal = [], []
        for _group in range(groups):
            noun = self._noun(scene_nouns, generator)
            for _caption in range(captions):
                prompt_set = self._sets[int(torch.multinomial(self._weights, 1, generator=generator))]
                normal.append(self._sentence(prompt_set, noun, False, generator))
                if float(torch.rand(1, generator=generator)) < _NAMED_DEFECT_SHARE:
                    state = _pick(_DEFECT_STATES, generator).format(word=_pick(_WORDS, generator), noun="{}")
                    prompt_set = replace(prompt_set, abnormal=(state,))
                abnormal.append(self._sentence(prompt_set, noun, True, generator))
        noun = self._noun(scene_nouns, generator)
        kinds = []
        for defect in DEFECTS.values():
            state = _pick(_DEFECT_STATES, generator).format(word=_pick(defect.words, generator), noun="{}")
            kinds.append(self._sentence(replace(self._sets[2], abnormal=(state,)), noun, True, generator))
        shape = (groups, captions, self._context)
        return CaptionBatch(
            self.tokenize(normal).view(shape), self.tokenize(abnormal).view(shape), self.tokenize(kinds)
        )

    def tokenize(self, sentences: list[str]) -> Tensor:
        """Return (P, context) token ids, tokenized word by word, which gives the same result and can be cached."""
        ids = torch.zeros(len(sentences), self._context, dtype=torch.long)
        for row, sentence in enumerate(sentences):
            words = [token for word in sentence.split() for token in self._encode_word(word)]
            words = words[: self._context - 2]
            line = [self._tokenizer.sot_token_id, *words, self._tokenizer.eot_token_id]
            ids[row, : len(line)] = torch.tensor(line)
        return ids

    def _noun(self, scene_nouns: list[str], generator: torch.Generator) -> str:
        if float(torch.rand(1, generator=generator)) < _SCENE_NOUN_SHARE:
            return _pick(scene_nouns, generator)
        length = 1 + int(torch.randint(0, 2, (1,), generator=generator))
        return " ".join(_pick(self._words, generator) for _word in range(length))

    def _sentence(self, prompt_set: PromptSet, noun: str, abnormal: bool, generator: torch.Generator) -> str:
        domain = _pick(self._domains, generator)
        sides = prompt_set.sentences(noun, (_pick(domain, generator),))
        return _pick(sides[abnormal], generator)


_Option = TypeVar("_Option")


def _pick(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    return options[int(torch.randint(0, len(options), (1,), generator=generator))]
