"""Every public name says what it is; every technique says where it comes from and what it costs."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator

import forgepress

PACKAGES = ("trainer", "parallel", "compression", "dataloading", "launch")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """(dotted name inside the module, node) of classes, functions and methods that are not nested in functions."""
    for node in body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def says_nothing_new(module: str, name: str, node: Definition) -> bool:
    """A setter, an overload, or a method that a base class of ours or a library's explains already."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(d.endswith((".setter", ".deleter", "overload")) for d in decorators):
        return True
    holder, _, method = name.rpartition(".")
    if not holder:
        return False
    owner = importlib.import_module(module)
    for part in holder.split("."):
        owner = getattr(owner, part)
    assert isinstance(owner, type)
    return any(inspect.getdoc(vars(base)[method]) for base in owner.__mro__[1:] if method in vars(base))


def test_every_module_has_a_docstring(tree):
    missing = [n for n, module in tree.modules.items() if public(n) and not ast.get_docstring(module)]
    assert missing == []


def test_every_public_class_function_and_method_has_a_docstring(tree):
    missing = [
        f"{module_name}.{name}"
        for module_name, module in tree.modules.items()
        if public(module_name)
        for name, node in definitions(module.body)
        if public(name) and not ast.get_docstring(node) and not says_nothing_new(module_name, name, node)
    ]
    assert not missing, "no docstring:\n" + "\n".join(missing)


def test_every_technique_names_its_source_and_its_cost():
    from forgepress.compression.registry import techniques

    assert techniques(), "no technique was found"
    for name, technique in techniques().items():
        text = technique.__doc__ or ""
        for word in ("source:", "cost:"):
            found = re.search(rf"{word}\s*(\S[^\n]*)", text)
            assert found and len(found[1]) > 5, f"{name}: its docstring has no `{word}` with a text"


def test_every_technique_has_a_test_file_of_its_name(tree):
    from forgepress.compression.registry import techniques

    missing = []
    for name in techniques():
        folder, file = name.split(".")
        if not (tree.root / "tests/compression" / folder / f"test_{file}.py").is_file():
            missing.append(f"tests/compression/{folder}/test_{file}.py")
    assert missing == []


def test_every_name_in_every_all_resolves(tree):
    broken = []
    for module_name in tree.modules:
        if module_name.endswith("__main__"):
            continue
        module = importlib.import_module(module_name)
        broken += [f"{module_name}.{n}" for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
    assert broken == []


def test_the_face_lists_exactly_what_it_serves():
    served = {name for name in dir(forgepress) if not name.startswith("_") and name in forgepress._HOMES}
    assert set(forgepress.__all__) == served | {"__version__"}
    assert len(forgepress.__all__) == len(set(forgepress.__all__))


def test_packages_list_the_names_that_the_face_serves_from_them():
    missing = []
    for name, home in forgepress._HOMES.items():
        listed = getattr(importlib.import_module(home, "forgepress"), "__all__", None)
        if listed is not None and name not in listed:
            missing.append(f"{name} in __all__ of forgepress{home}")
    assert missing == []


def test_every_public_name_is_in_the_docs(tree):
    pages = "\n".join(path.read_text() for path in (tree.root / "docs").glob("*.md"))
    assert [name for name in forgepress.__all__ if f"forgepress.{name}" not in pages] == []


def test_a_method_without_a_docstring_is_noticed():
    source = (
        '"""module"""\nclass A:\n    """a"""\n    def b(self): ...\n    def _c(self):\n        def d(): ...\n'
    )
    names = [name for name, node in definitions(ast.parse(source).body) if not ast.get_docstring(node)]
    assert [name for name in names if public(name)] == ["A.b"]
