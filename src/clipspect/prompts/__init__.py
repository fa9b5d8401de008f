"""Object name → sentences → text anchors."""

from clipspect.prompts.sentences import PromptSet, PromptTable, clean_object_name, load_prompts

__all__ = ["PromptSet", "PromptTable", "clean_object_name", "load_prompts"]
