"""Everything that is wrong with a config, on one screen: where, what was given, what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..errors import ConfigError

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the config: ("phases", 1, "steps")."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing to mend. `place` is file:line, the override, or "" for a config made in Python."""

    path: Path
    message: str
    place: str = ""

    def __str__(self) -> str:
        head = "  ".join(part for part in (self.place, written(self.path)) if part)
        body = self.message.replace("\n", "\n      ")
        return f"  {head}\n      {body}" if head else f"  {body}"


def written(path: Path) -> str:
    """The path as it is written in an override: phases.1.steps."""
    return ".".join(str(key) for key in path)


def show(value: Any, limit: int = 60) -> str:
    """A value as YAML people write it, cut to one short line."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = "null" if value is None else text
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def config_error(problems: Iterable[Problem], what: str = "the config") -> ConfigError:
    """All problems as one error, in the order given, each of them once."""
    unique = list(dict.fromkeys(problems))
    count = "1 problem" if len(unique) == 1 else f"{len(unique)} problems"
    return ConfigError("\n".join([f"{what} has {count}", *(str(problem) for problem in unique)]))


def refusal(*problems: tuple[Path, str]) -> PydanticCustomError:
    """What a pydantic validator raises: each problem is (path below the validated value, message)."""
    summary = "; ".join(f"{written(path)}: {message}" if path else message for path, message in problems)
    # The message is a template for pydantic: braces in it would be read as fields.
    return PydanticCustomError("forgepress", "{summary}", {"summary": summary, "problems": list(problems)})


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' or the list of what is known, as the end of a sentence."""
    words = sorted(known)
    close = get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(words)}" if words else ""


def problems_of(error: ValidationError, root: type[BaseModel], place: Callable[[Path], str]) -> list[Problem]:
    """pydantic's errors in our words, with `place(path)` of each."""
    problems = []
    for detail in error.errors(include_url=False):
        path: Path = tuple(detail["loc"])
        for below, message in _messages(detail, root):
            whole = (*path, *below)
            problems.append(Problem(path=whole, message=message, place=place(whole)))
    return problems


def _messages(detail: ErrorDetails, root: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    """(path below the error, message) of one of pydantic's errors; our own validators may carry several."""
    kind, path, context = detail["type"], tuple(detail["loc"]), detail.get("ctx", {})
    if kind == "forgepress":
        yield from context["problems"]
    elif kind == "extra_forbidden":
        yield (), f"unknown key{_elsewhere(path, root)}"
    elif kind == "missing":
        yield (), "required, but not given"
    else:
        yield (), message_of(detail)


def message_of(detail: ErrorDetails) -> str:
    """What was given and what is wanted, for pydantic's errors about one value."""
    wanted = _wanted(detail["type"], detail.get("ctx", {}), detail)
    return f"given {show(detail['input'])}; want {wanted}"


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "tuple_type": "a list [a, b, …]",
    "list_type": "a list [a, b, …]",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "a number below {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more entries",
    "too_long": "at most {max_length} entries",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
}


def _wanted(kind: str, context: dict[str, Any], detail: ErrorDetails) -> str:
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        close = get_close_matches(str(detail["input"]).lower(), choices, n=1)
        return f"one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")
    if kind in _WANTED:
        return _WANTED[kind].format(**context)
    return detail["msg"]


def _elsewhere(path: Path, root: type[BaseModel]) -> str:
    """The nearest key at this place, or the place where exactly this key belongs."""
    *above, key = path
    known = keys_at(root, tuple(above))
    homes = [home for home in _all_keys(root) if home[-1] == key]
    if not get_close_matches(str(key).lower(), known, n=1, cutoff=0.75) and homes:
        return f"; did you mean {written(homes[0])}?"
    return nearest(str(key), known)


def keys_at(root: type[BaseModel], path: Path) -> tuple[str, ...]:
    """The keys that a config may have at `path`; () where anything goes."""
    part: type[BaseModel] | None = root
    for key in path:
        if isinstance(key, str):
            field = part.model_fields.get(key) if part else None
            part = _part_in(field.annotation) if field else None
    return tuple(part.model_fields) if part else ()


def _all_keys(root: type[BaseModel], above: Path = ()) -> Iterator[Path]:
    for key, field in root.model_fields.items():
        yield (*above, key)
        part = _part_in(field.annotation)
        if part:
            yield from _all_keys(part, (*above, key))


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The config part inside `Part`, `Part | None`, `tuple[Part, ...]`, `Annotated[…]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for argument in get_args(annotation) if (part := _part_in(argument))), None)
