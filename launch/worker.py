"""`python -m forgepress.launch.worker module:qualname arguments.json` runs one function as one rank.

arguments.json: {"arguments": […], "run_folder": path or null, "results": folder or null, "timeout": s, "silence": s}.
The function is called with the arguments, and with `place=Place(…)` if it takes a parameter of that name. What it
returns is written to <results>/rank-N.json. Under torchrun the same command joins the ranks that are there.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ForgepressError
from .environment import Place, read_place
from .rank import die_with_parent, run_rank


def find_function(name: str) -> Callable[..., Any]:
    """The function "package.module:qualname", or "folder/file.py:qualname" for a file outside any package."""
    module_name, _, path = name.rpartition(":")
    if not module_name:
        raise ConfigError(f"{name!r} names no function; want package.module:function or file.py:function")
    try:
        found: Any = (
            _load_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
        for part in path.split("."):
            found = getattr(found, part)
    except (ModuleNotFoundError, FileNotFoundError, AttributeError) as error:
        raise ConfigError(f"{name!r}: {error}; want package.module:function or file.py:function") from error
    return found


def _load_file(path: str) -> Any:
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert specification and specification.loader  # both are there for a path that ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """Runs the function named on the command line as the rank that the environment describes; the exit code."""
    die_with_parent()
    sys.path.append(os.getcwd())  # as the command line does: an own technique or factory may lie here
    name, job_file = arguments
    job = json.loads(Path(job_file).read_text())
    try:
        place = read_place()
    except ForgepressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code

    def work(place: Place) -> None:
        function = find_function(name)
        named = {"place": place} if "place" in inspect.signature(function).parameters else {}
        result = function(*job["arguments"], **named)
        if job["results"]:
            (Path(job["results"]) / f"rank-{place.rank}.json").write_text(json.dumps(result))

    run_folder = Path(job["run_folder"]) if job["run_folder"] else None
    return run_rank(work, place, run_folder=run_folder, timeout=job["timeout"], silence=job["silence"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
