"""Imports point downwards: no cycles between files, and no package imports one above it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "clipspect"
LAYERS = (
    ("types", "errors", "demo", "viewer"),
    ("postprocess",),
    ("data", "prompts", "detection"),
    ("stitching",),
    ("registry", "backbones"),
    ("methods", "config"),
    ("results",),
    ("model",),
    ("tensors", "reference_file", "precision"),
    ("identity", "references", "scoring"),
    ("detector",),
    ("loading", "profile"),
    ("product",),
    ("benchmark", "export", "distributed", "server", "watch"),
    ("integrations", "ui", "training"),
    ("cli", "__main__"),
)
"""From the lowest to the highest; a package imports from its own layer and below."""
RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, but for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ignored = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", None) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in ignored
            and (node.module or "").startswith("clipspect")
        ):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in FILES else str(node.module))
    return found & set(FILES)


def test_no_file_imports_another_in_a_circle():
    graph = {name: imports_of(path) - {name} for name, path in FILES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_every_package_has_a_layer_and_imports_no_higher_one():
    wrong = []
    for name, path in FILES.items():
        if name == "clipspect":
            continue
        own = name.split(".")[1]
        for other in imports_of(path):
            if other != "clipspect" and RANK[other.split(".")[1]] > RANK[own]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_the_product_imports_no_training_code_but_for_the_level_on_rendered_scenes():
    users = {n for n, p in FILES.items() if not n.startswith("clipspect.training") and any(
        other.startswith("clipspect.training") for other in imports_of(p))}  # fmt: skip
    assert users == {"clipspect.cli.catalog"}
