"""Prompts: from object name to sentences to text embeddings."""

from clipspect.prompts.sentences import (
    PromptConfig,
    PromptSet,
    PromptTable,
    clean_object_name,
    load_prompts,
    object_words,
)

__all__ = [
    "PromptConfig",
    "PromptSet",
    "PromptTable",
    "clean_object_name",
    "load_prompts",
    "object_words",
]
