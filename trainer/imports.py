"""Functions that a config names as "package.module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError


def load_function(path: str, what: str) -> Callable[..., Any]:
    """The callable that `path` ("package.module:function") names.

    what:   the setting that asked for it, for the error.
    raises: ConfigError where the form is wrong, the module cannot be imported or has no such callable.
    """
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise ConfigError(f"{what}: {path!r} is not of the form 'package.module:function'")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{what}: module {module_name!r} of {path!r} cannot be imported ({error}); "
            "install it or put its folder on PYTHONPATH"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"{what}: module {module_name!r} has no function {name!r}")
    return found
