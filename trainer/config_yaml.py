"""YAML text ↔ plain values, read safely, with the line of every key, which PyYAML forgets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from .config_errors import Path, Problem

MOST_NODES = 100_000  # aliases of aliases grow exponentially: a page of YAML must not fill the memory


class _Loader(yaml.SafeLoader):
    """YAML 1.1, with 1e-3 a number as people expect, and dates left as text."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number, so that text stays text."""


_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":timestamp", ":float"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass
class Document:
    """One text as values: `lines` has the line (from 1) of every key and entry, `problems` what is wrong."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, name: str) -> Document:
    """Read YAML `text`; problems are placed at `name`, a file. Never raises for bad YAML."""
    document = Document()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _walk(node, (), name, document)
                document.value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(error, name))
    except RecursionError:
        document.problems.append(
            Problem(path=(), place=name, message="nested too deeply, or an alias of itself")
        )
    return document


def parse_value(text: str) -> Any:
    """The value of an override. raises: yaml.YAMLError."""
    return yaml.load(text, _Loader)


def dump(value: Any) -> str:
    """Plain values as YAML that `load_config` reads back to equal values: a ${ in a text is not looked up."""
    return yaml.dump(_literal(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(below) for below in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # one backslash says that ${ is meant as it stands
    return value


def _walk(node: yaml.Node, path: Path, name: str, document: Document) -> None:
    """Note the line of everything below `node`, and keys that are given twice or are not text."""
    if len(document.lines) > MOST_NODES:
        raise yaml.constructor.ConstructorError(
            None, None, f"more than {MOST_NODES} values; are there aliases of aliases?", node.start_mark
        )
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _note((*path, index), child, document)
            _walk(child, (*path, index), name, document)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, child in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                _walk_merged(child, path, name, document)
                continue
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
            if key_node.tag != "tag:yaml.org,2002:str":
                message = f"given the key {key}, which YAML reads as {key_node.tag[18:]}; want text: quote it"
                document.problems.append(Problem(path=(*path, key), place=f"{name}:{line}", message=message))
            if key in seen:
                message = f"given twice, first in line {seen[key]}; keep one of them"
                document.problems.append(Problem(path=(*path, key), place=f"{name}:{line}", message=message))
            seen[key] = line
            _note((*path, key), key_node, document)
            _walk(child, (*path, key), name, document)


def _walk_merged(node: yaml.Node, path: Path, name: str, document: Document) -> None:
    """`<<: *base` brings the base's keys here; lines of the mapping's own keys stay."""
    for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        own = dict(document.lines)
        _walk(base, path, name, document)
        document.lines.update(own)


def _note(path: Path, node: yaml.Node, document: Document) -> None:
    document.lines[path] = node.start_mark.line + 1


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}" if mark else name
    said = getattr(error, "problem", None) or str(error)
    if "'\\t'" in said:
        return Problem(
            path=(), place=place, message="given a tab; want spaces: YAML is indented by spaces only"
        )
    if "could not determine a constructor" in said:
        tag = said.split("'")[1].replace("tag:yaml.org,2002:", "!!")
        return Problem(path=(), place=place, message=f"given the tag {tag}; want plain values without tags")
    return Problem(path=(), place=place, message=f"not valid YAML: {said}")
