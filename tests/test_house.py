"""The house rules: who may import whom, small modules, no circles, documented names, and what a wheel carries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sppo_lit"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}

LEVELS = {
    "types": 0,
    "errors": 0,
    "paths": 0,
    "logs": 0,
    "looks": 0,
    "launching": 0,
    "settings": 3,
    "algorithms": 1,
    "rewards": 1,
    "models": 2,
    "problems": 2,
    "rollout": 2,
    "memory_use": 3,
    "metrics": 3,
    "control": 3,
    "distributed": 4,
    "faults": 4,
    "policy_module": 4,
    "rollout_module": 4,
    "diagnostics": 4,
    "module": 4,
    "supervised": 4,
    "validation": 4,
    "datamodule": 4,
    "callbacks": 4,
    "analysis": 5,
    "audit": 5,
    "memory": 4,
    "doctor": 5,
    "resume": 6,
    "doctor_cli": 6,
    "mistakes": 6,
    "lightning_cli": 6,
    "study": 6,
    "cli": 6,
}
"""A room may import from lower levels and from itself."""

NEIGHBOURS = {4, 6}
"""Levels whose rooms may import each other."""

BARRED = {
    "types": {"torch", "lightning", "transformers", "datasets"},
    "errors": {"torch", "lightning", "transformers", "datasets"},
    "launching": {"torch", "lightning", "transformers", "datasets"},
    "algorithms": {"lightning", "transformers", "datasets", "rich"},
    "rewards": {"torch", "lightning", "transformers", "datasets"},
    "models": {"lightning"},
    "problems": {"lightning"},
    "rollout": {"lightning"},
}
"""Packages that a room does without."""

OPTIONAL = {"vllm", "gymnasium", "stable_baselines3", "mujoco", "matplotlib", "wandb", "gguf", "peft"}


def module_name(path: Path) -> str:
    """`sppo_lit/models/policy.py` → `sppo_lit.models.policy`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The part of the house that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path, anywhere: bool) -> set[str]:
    """Absolute names of the modules that a file imports, at run time.

    Args:
        path: the file.
        anywhere: inside functions as well; else only when the module itself is imported.
    """
    found: set[str] = set()
    parts = [*module_name(path).split("."), *(["__init__"] if path.name == "__init__.py" else [])]

    def visit(node: ast.AST) -> None:
        if for_types_only(node) or (not anywhere and isinstance(node, (ast.FunctionDef, ast.Lambda))):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*parts[: -node.level], *([node.module] if node.module else [])] if node.level else [node.module or ""]
            )
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(TREES[path])
    return found


def test_every_room_has_a_level() -> None:
    rooms = {room(module_name(path)) for path in TREES} - {""}
    assert rooms <= LEVELS.keys(), f"give a level to {rooms - LEVELS.keys()}"


def test_import_rule() -> None:
    wrong = []
    for path in TREES:
        me = room(module_name(path))
        if not me:
            continue
        for name in imports(path, anywhere=True):
            other = room(name) if name.split(".")[0] == "sppo_lit" else ""
            if other not in LEVELS or other == me:
                continue
            lower = LEVELS[other] < LEVELS[me]
            if not lower and not (LEVELS[other] == LEVELS[me] and LEVELS[me] in NEIGHBOURS):
                wrong.append(f"{module_name(path)} (level {LEVELS[me]}) imports {name} (level {LEVELS[other]})")
            if me == "analysis" and LEVELS[other] not in (0, 3):
                wrong.append(f"{module_name(path)} imports {name}: analysis reads metrics and files only")
    assert not wrong, "\n".join(wrong)


def test_packages_that_a_room_does_without() -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in TREES
        for name in imports(path, anywhere=True)
        if name.split(".")[0] in BARRED.get(room(module_name(path)), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_packages_are_imported_where_they_are_needed() -> None:
    wrong = [
        f"{module_name(path)} imports {name} at module level"
        for path in TREES
        for name in imports(path, anywhere=False)
        if name.split(".")[0] in OPTIONAL or name.startswith("lightning.pytorch.loggers.wandb")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_circles() -> None:
    modules = {module_name(path) for path in TREES}
    edges = {
        module_name(path): {name for name in imports(path, anywhere=False) if name in modules} - {module_name(path)}
        for path in TREES
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for other in edges.get(module, ()):
                walk(other, (*path, module))
            done.add(module)

    for module in edges:
        walk(module, ())


def test_modules_can_be_read_in_one_sitting() -> None:
    sizes = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in TREES}
    assert not {module: size for module, size in sizes.items() if size > 400}


def public(tree: ast.AST) -> list[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and public methods of classes without a base that documents them."""
    found: list[ast.FunctionDef | ast.ClassDef] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef) and not node.bases:
                found.extend(public(node))
    return found


def test_every_public_name_has_a_docstring() -> None:
    bare = [
        f"{module_name(path)}.{node.name} (line {node.lineno})"
        for path, tree in TREES.items()
        for node in public(tree)
        if not ast.get_docstring(node)
    ]
    assert not bare, "\n".join(bare)
    assert all(ast.get_docstring(tree) for tree in TREES.values()), "a module without docstring"


def mentions_tensor(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [a.annotation for a in arguments if a.annotation is not None] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(a)) for a in annotations if a is not None)


@pytest.mark.parametrize("where", ["algorithms", "models"])
def test_functions_on_tensors_tell_shapes(where: str) -> None:
    shape = re.compile(r"\[[A-Z]\b|\[size\]|scalar|elementwise|element by element")
    silent = [
        f"{module_name(path)}.{node.name} (line {node.lineno})"
        for path, tree in TREES.items()
        if room(module_name(path)) == where
        for node in public(tree)
        if isinstance(node, ast.FunctionDef) and mentions_tensor(node)
        if not shape.search(ast.get_docstring(node) or "")
    ]
    assert not silent, "no shape such as [B, T] in the docstring of:\n" + "\n".join(silent)


def test_importing_the_package_is_cheap() -> None:
    """The processes that judge answers must not load torch, nor should `sppo --help`."""
    code = (
        "import sys, sppo_lit, sppo_lit.cli.main, sppo_lit.types, sppo_lit.rewards.math.answers\n"
        "sppo_lit.cli.main.main(['--help'])\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_carries_recipes_and_weights(tmp_path: Path) -> None:
    """`sppo list` and the quickstart work where there is no clone."""
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for path in [*(ROOT / "recipes").rglob("*.yaml"), ROOT / "data" / "arithmetic" / "base" / "config.json"]:
        assert f"sppo_lit/share/{path.relative_to(ROOT).as_posix()}" in names
    assert "sppo_lit/py.typed" in names and not any("tests/" in n or "downloads/" in n for n in names)
    code = (
        "import sys; sys.path.insert(0, 'site'); from sppo_lit.cli.main import main, translate\n"
        "assert main(['list']) == 0; print(translate(['recipes/quickstart.yaml'])[2])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    assert "recipes/gsm8k/sppo.yaml" in done.stdout
    assert "site/sppo_lit/share/recipes/quickstart.yaml" in done.stdout
