"""From YAML files and overrides to a `RunConfig`: merge in order, override, resolve ${…}, check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from .config import RunConfig
from .config_errors import Path, Problem, config_error, problems_of, show
from .config_overrides import apply_overrides
from .config_techniques import LATER
from .config_yaml import Document, parse


@dataclass(frozen=True)
class Origins:
    """Where every key was last set: in an override, else in the last file that has it."""

    overrides: dict[Path, str]
    files: tuple[tuple[str, dict[Path, int]], ...]

    def place(self, path: Path) -> str:
        """The override's text or file:line of the key or, where it is nowhere, of what is around it."""
        above = [path[:length] for length in range(len(path), 0, -1)]
        for key in above:
            if key in self.overrides:
                return f"override {self.overrides[key]}"
        nearest, place = 0, self.files[-1][0] if self.files else ""
        for name, lines in reversed(self.files):
            key = next((key for key in above if key in lines), ())
            if len(key) > nearest:
                nearest, place = len(key), f"{name}:{lines[key]}"
            if key and (key == path or any(isinstance(part, int) for part in path[: len(key) + 1])):
                break  # this file has the key, or the list that it is in: lists replace those of earlier files
        return place

    def reading_order(self, problem: Problem) -> tuple[int, int]:
        """Files in their order, from top to bottom, then overrides: as a person mends them."""
        name, _, line = problem.place.rpartition(":")
        names = [file for file, _ in self.files]
        if name in names and line.isdigit():
            return names.index(name), int(line)
        return (names.index(problem.place), 0) if problem.place in names else (len(names), 0)


Files = str | FilePath | Sequence[str | FilePath]


def load_config(files: Files, overrides: Sequence[str] = (), *, techniques: bool = True) -> RunConfig:
    """The run in YAML `files` (one or several), merged in order (lists are replaced), then `key.sub=value` overrides.

    A run without a name is called after the last file. raises: ConfigError with every problem that was found.
    techniques: False leaves their settings unchecked, where nothing else is wrong, and imports no torch: for a
    process that starts others, each of which checks them.
    """
    return load_with_origins(files, overrides, techniques=techniques)[0]


def load_with_origins(
    files: Files, overrides: Sequence[str] = (), *, techniques: bool = True
) -> tuple[RunConfig, Origins]:
    """`load_config`, with where each key came from, so that later checks can name file and line too."""
    files = [files] if isinstance(files, str | FilePath) else list(files)
    documents = [(str(file), _read(FilePath(file))) for file in files]
    origins = Origins({}, tuple((name, document.lines) for name, document in documents))
    what = " + ".join(name for name, _ in documents) or "the config"
    problems = [problem for _, document in documents for problem in document.problems]
    layers = [document.value for _, document in documents]
    if any(not isinstance(layer, dict) for layer in layers):
        raise config_error(problems, what)  # what cannot be read cannot be merged: the rest would be guesses

    merged, unmergeable = _merged(layers, origins)
    if unmergeable:
        raise config_error([*problems, *unmergeable], what)
    problems += apply_overrides(merged, overrides, origins.overrides)
    merged, unresolved = _resolved(merged, origins)
    problems += unresolved
    if files:
        merged.setdefault("name", FilePath(files[-1]).stem)
    try:
        config = _checked(merged, techniques or bool(problems))
    except ValidationError as error:
        known = {problem.path for problem in problems}
        found = problems_of(error, RunConfig, origins.place)
        # A key already known to be wrong has only a stand-in for a value: what pydantic says of it is noise.
        found = [each for each in found if not any(each.path[: len(path)] == path for path in known if path)]
        raise config_error(sorted([*problems, *found], key=origins.reading_order), what) from None
    if problems:
        raise config_error(sorted(problems, key=origins.reading_order), what)
    return config, origins


def _checked(merged: dict[str, Any], techniques: bool) -> RunConfig:
    """The config; once one thing is wrong the techniques are looked at too, so that all is said at once."""
    if not techniques:
        with suppress(ValidationError):
            return RunConfig.model_validate(merged, context=LATER)
    return RunConfig.model_validate(merged)


def _read(file: FilePath) -> Document:
    """A file as values; {} where it is empty, None with problems where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(other.name for other in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        hint = f"; in that folder: {', '.join(near[:8])}" if near else ""
        return Document(problems=[Problem(path=(), place=str(file), message=f"no such file{hint}")])
    except (OSError, UnicodeDecodeError) as error:
        return Document(problems=[Problem(path=(), place=str(file), message=f"cannot be read: {error}")])
    document = parse(text, str(file))
    if document.value is None and not document.problems:
        document.value = {}
    if not document.problems and not isinstance(document.value, dict):
        message = f"given {show(document.value)}; want a mapping with model, data, phases, …"
        document.problems.append(Problem(path=(), place=str(file), message=message))
    return document


def _merged(layers: Sequence[dict[str, Any]], origins: Origins) -> tuple[dict[str, Any], list[Problem]]:
    """The layers on top of each other, ${…} still in place."""
    try:
        config = OmegaConf.merge({}, *(OmegaConf.create(layer) for layer in layers))
        container = OmegaConf.to_container(config, resolve=False)
    except OmegaConfBaseException as error:
        path = _path_of(getattr(error, "full_key", None) or "")
        return {}, [Problem(path=path, place=origins.place(path), message=str(error).splitlines()[0])]
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}, []


def _resolved(merged: dict[str, Any], origins: Origins) -> tuple[dict[str, Any], list[Problem]]:
    """Every ${…} replaced by its value; each one that has none is a problem and becomes None."""
    problems: list[Problem] = []
    try:
        root = OmegaConf.create(merged)
    except OmegaConfBaseException as error:
        path = _path_of(getattr(error, "full_key", None) or "")
        return merged, [Problem(path=path, place=origins.place(path), message=str(error).splitlines()[0])]

    def plain(node: Any, path: Path) -> Any:
        if isinstance(node, DictConfig):
            return {str(key): value(node, key, (*path, str(key))) for key in node}
        if isinstance(node, ListConfig):
            return [value(node, index, (*path, index)) for index in range(len(node))]
        return node

    def value(parent: DictConfig | ListConfig, key: Any, path: Path) -> Any:
        try:
            if OmegaConf.is_missing(parent, key):
                problems.append(
                    Problem(path=path, place=origins.place(path), message="left open (???); want a value")
                )
                return None
            return plain(parent[key], path)
        except OmegaConfBaseException as error:
            message = _unresolved(parent, key, error)
            problems.append(Problem(path=path, place=origins.place(path), message=message))
        except RecursionError:
            problems.append(Problem(path=path, place=origins.place(path), message="refers to itself"))
        return None

    return plain(root, ()), problems


def _unresolved(parent: DictConfig | ListConfig, key: Any, error: Exception) -> str:
    node = parent._get_node(key)
    given = node._value() if isinstance(node, Node) else key
    reason = str(error).splitlines()[0]
    if reason.startswith("Interpolation key"):
        reason = f"the config has no key {reason.split(chr(39))[1]}"
    return f"given {show(given)}; {reason}"


def _path_of(full_key: str) -> Path:
    """OmegaConf writes phases[0].steps."""
    keys = full_key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(key) if key.isdigit() else key for key in keys if key)
