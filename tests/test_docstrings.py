"""Docstrings of public functions on tensors say which shapes they take and return; ruff checks the rest."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sppo_lit"


def public(tree: ast.AST) -> list[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and public methods of classes without a base that documents them."""
    found: list[ast.FunctionDef | ast.ClassDef] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef) and not node.bases:
                found.extend(public(node))
    return found


def mentions_tensor(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [a.annotation for a in arguments if a.annotation is not None] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(a)) for a in annotations if a is not None)


@pytest.mark.parametrize("where", ["algorithms", "models"])
def test_functions_on_tensors_tell_shapes(where: str) -> None:
    shape = re.compile(r"\[[A-Z]\b|\[size\]|scalar|elementwise|element by element")
    silent = [
        f"{path.relative_to(PACKAGE)}: {node.name} (line {node.lineno})"
        for path in sorted((PACKAGE / where).rglob("*.py"))
        for node in public(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and mentions_tensor(node)
        if not shape.search(ast.get_docstring(node) or "")
    ]
    assert not silent, "no shape such as [B, T] in the docstring of:\n" + "\n".join(silent)
