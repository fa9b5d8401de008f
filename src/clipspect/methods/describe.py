"""Descriptions of a method's settings from its dataclass: the docstring below each field is its help."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields, is_dataclass

from clipspect.registry import method_class


def describe_settings(name: str) -> list[tuple[str, str, str]]:
    """Return (setting, default, description) for a method. Raises UsageError for an unknown one."""
    found = method_class(name)
    words: dict[str, str] = {}
    for cls in reversed(found.__mro__):
        if is_dataclass(cls):
            words |= _field_docs(cls)
    return [
        (f.name, str(f.default), words.get(f.name, "")) for f in fields(found) if f.name not in found.fixed
    ]


def _field_docs(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for here, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(here, ast.AnnAssign)
            and isinstance(here.target, ast.Name)
            and isinstance(after, ast.Expr)
        ):
            text = after.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docs[here.target.id] = " ".join(text.value.split())
    return docs
