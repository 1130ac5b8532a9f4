"""Secrets stay out of run folders, logs and job scripts: found by the name they have, or by what they look like."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError

HIDDEN = "HIDDEN"
_NAME = re.compile(r"(?i)(^|[_.-])((api|access|auth)?_?key|token|secret|passw(or)?d|credentials?)s?$")
_SETTING = re.compile(
    r"(?i)((api|access|auth|secret)_?(key|token)|secret|passw(or)?d|credentials?)$"
)  # not pad_token
_LOOKS = re.compile(r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{20,}")
_SHORTEST = 8  # characters: a shorter value would be found in innocent words


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with the values of secret variables and what looks like a key replaced by a word."""
    for value in secret_values(environment):
        text = text.replace(value, HIDDEN)
    return _LOOKS.sub(HIDDEN, text)


def hide_in_words(words: list[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line's words; a setting with a secret's name (`…api_key=…`) loses its value as well."""
    shown = []
    for word in words:
        name, equals, _ = word.partition("=")
        shown.append(
            f"{name}={HIDDEN}" if equals and _SETTING.search(name) else hide_secrets(word, environment)
        )
    return shown


def refuse_secrets(values: Any, environment: Mapping[str, str] | None = None) -> None:
    """A config is written to disk: it may not hold a secret. raises: ConfigError naming the key, never the value."""
    known = secret_values(environment)
    for path, text in _texts(values, ""):
        named = text and _SETTING.search(path.rpartition(".")[2])
        if named or _LOOKS.search(text) or any(value in text for value in known):
            raise ConfigError(
                f"{path}: holds a secret (by its name, its form or as the value of a secret variable), and the "
                "config is written into the run folder; leave it out and let the library read it from the environment"
            )


def secret_values(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values of the environment's variables whose names say that they are secret, longest first."""
    given = os.environ if environment is None else environment
    found = {value for name, value in given.items() if _NAME.search(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}.{index}")
    elif isinstance(value, str):
        yield path, value
