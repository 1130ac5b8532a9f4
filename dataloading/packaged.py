"""Files that an installed Python package carries, such as a model's: found without running the package's code."""

from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError

PREFIX = "package:"


def folder_of(name: str, holding: str) -> str:
    """The folder that `package:NAME` or `package:NAME/FOLDER` means; any other name as it is.

    NAME is an importable package, which is looked up and not imported. The folder is the topmost one in it that
    holds the file `holding`, for example config.json.
    raises: ConfigError for a package that is not installed, or that has no such folder or several.
    """
    if not name.startswith(PREFIX):
        return name
    package, _, inside = name.removeprefix(PREFIX).partition("/")
    top = package.partition(".")[0]
    try:
        # Looking up a dotted name would import what is above it.
        found = find_spec(top) if top.isidentifier() else None
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        found = None
    roots = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    if not roots:
        raise ConfigError(
            f"{name}: no package {top!r} is installed; install it, or give the folder with {holding}"
        )
    below = Path(*package.split(".")[1:], inside)
    files = [file for root in roots for file in (root / below).rglob(holding)]
    depth = min((len(file.parts) for file in files), default=0)
    folders = sorted({file.parent for file in files if len(file.parts) == depth})
    if len(folders) != 1:
        several = ", ".join(str(folder) for folder in folders)
        raise ConfigError(
            f"{name}: {holding} is in {several}; name one of them: {PREFIX}{package}/FOLDER"
            if several
            else f"{name}: no folder of the package holds {holding}; want a package that carries the files"
        )
    return str(folders[0])
