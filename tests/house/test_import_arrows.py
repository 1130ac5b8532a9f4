"""Imports flow one way: launch → trainer → {parallel, compression, dataloading}; errors and C functions are for all."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

LOWER = {"parallel", "compression", "dataloading"}
MAY_IMPORT = {
    "parallel": {"parallel", "errors"},
    "compression": {"compression", "errors", "c_functions"},
    "dataloading": {"dataloading", "errors", "c_functions"},
    "trainer": {"trainer", "errors", "version", *LOWER},
    "launch": {"launch", "trainer", "errors", "version", *LOWER},
    "errors": set(),
    "c_functions": set(),
    "root": set(),  # the face: everything loads on first use
}
HEAVY = {
    "transformers",
    "timm",
    "wandb",
    "tensorboard",
    "deepspeed",
    "accelerate",
    "onnx",
    "onnxruntime",
    "sklearn",
    "datasets",
    "lightning",
    "optuna",
}


def house_of(dotted: str) -> str:
    """The package that a dotted name of ours is in; `root` for the face itself."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "root"


def imported(name: str, is_package: bool, node: ast.AST) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, relative level) of everything that an import in module `name` names."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, 0) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = name.split(".") if is_package else name.split(".")[:-1]
        base = package[: len(package) - node.level + 1] if node.level else []
        base = [*base, *(node.module.split(".") if node.module else [])]
        if base == ["forgepress"]:  # from .. import X: X is a package, or a name that only the face has
            names = ["version" if alias.name == "__version__" else alias.name for alias in node.names]
            yield from ((f"forgepress.{alias}", node.level) for alias in names)
        else:
            yield ".".join(base), node.level
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
        "import_module",
        "__import__",
    ):
        given = node.args[0] if node.args else None
        if isinstance(given, ast.Constant) and str(given.value).split(".")[0] == "forgepress":
            yield str(given.value), 0


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that importing the module runs: not inside functions, not under TYPE_CHECKING."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from run_at_import(statement.orelse)
            continue
        yield statement
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            for child in getattr(statement, field, []):
                yield from run_at_import([child] if isinstance(child, ast.stmt) else child.body)


def test_imports_follow_the_arrows(tree):
    wrong = []
    for name, module in tree.modules.items():
        for node in ast.walk(module):
            for target, _ in imported(name, tree.is_package(name), node):
                if target.split(".")[0] != "forgepress":
                    continue
                if house_of(target) not in MAY_IMPORT[house_of(name)]:
                    wrong.append(f"{name}:{getattr(node, 'lineno', 0)} imports {target}")
    assert not wrong, (
        "against the arrows launch → trainer → {parallel, compression, dataloading}:\n" + "\n".join(wrong)
    )


def test_our_own_modules_are_imported_relatively(tree):
    wrong = [
        f"{name}:{node.lineno} {target}"
        for name, module in tree.modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target, level in imported(name, tree.is_package(name), node)
        if target.split(".")[0] == "forgepress" and level == 0
    ]
    assert not wrong, (
        "an absolute import fails where the root is found under its folder's name:\n" + "\n".join(wrong)
    )


def test_heavy_libraries_are_imported_inside_functions_only(tree):
    wrong = [
        f"{name}:{statement.lineno} {target}"
        for name, module in tree.modules.items()
        for statement in run_at_import(module.body)
        for target, _ in imported(name, tree.is_package(name), statement)
        if target.split(".")[0] in HEAVY
    ]
    assert not wrong, "import it in the function that uses it:\n" + "\n".join(wrong)


def test_importing_every_module_loads_no_heavy_library(tree):
    names = [name for name in tree.modules if not name.endswith("__main__")]
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    script += f"print(*sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("name", "line", "target"),
    [
        ("forgepress.parallel.mesh", "from ..trainer.loop import Trainer", "forgepress.trainer.loop"),
        ("forgepress.compression", "from ..parallel import Mesh", "forgepress.parallel"),
        ("forgepress.compression.pruning.magnitude", "from ...launch import cli", "forgepress.launch"),
        ("forgepress.dataloading.loader", "from .. import trainer", "forgepress.trainer"),
        ("forgepress.parallel.mesh", "import_module('forgepress.trainer')", "forgepress.trainer"),
    ],
)
def test_every_way_to_write_an_upward_import_is_seen(name, line, target):
    seen = [t for node in ast.walk(ast.parse(line)) for t, _ in imported(name, name.count(".") == 1, node)]
    assert target in seen
    assert house_of(target) not in MAY_IMPORT[house_of(name)]


def test_an_import_inside_a_class_or_a_try_counts_as_module_level():
    source = "try:\n    import wandb\nexcept ImportError:\n    import timm\nclass A:\n    import onnx\n"
    source += "def f():\n    import sklearn\n"
    seen = [
        t
        for s in run_at_import(ast.parse(source).body)
        for t, _ in imported("forgepress.trainer.x", False, s)
    ]
    assert seen == ["wandb", "timm", "onnx"]
