"""C functions of ours, compiled once for a machine and called outside Python's lock.

Where there is no C compiler the packages do without, and give the same bits: slower.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_OFF = "FORGEPRESS_NATIVE"  # 0: as if there were no compiler
_FLAGS = ("-std=c99", "-O3", "-shared", "-fPIC")
_PATIENCE = 60  # seconds for a compiler that takes one
_KINDS = {
    "n": ctypes.c_int64,
    "u": ctypes.c_uint64,
    "f": ctypes.c_float,
    "p": ctypes.c_void_p,
    "c": ctypes.c_char_p,
}


def load(
    source: Path, takes: Mapping[str, str], *, counts: Collection[str] = (), flags: Sequence[str] = ()
) -> Any:
    """The functions ``forgepress_<name>`` of one C file; None where they cannot be had.

    takes:  name → its arguments, a letter each: n a number, u one without sign, f a float32, p an address, c bytes.
    counts: names of those that return a number (int64).   flags: for the compiler, beside the usual ones.
    They are compiled at the first use on a machine (0.3 s) into the user's cache folder, whole or not at all.
    FORGEPRESS_NATIVE=0 does without.
    """
    if os.environ.get(_OFF) == "0":
        return None
    try:
        found = ctypes.CDLL(str(compiled(source, flags)))
        for name, letters in takes.items():
            function = getattr(found, f"forgepress_{name}")
            function.argtypes = [_KINDS[letter] for letter in letters]
            function.restype = ctypes.c_int64 if name in counts else None
        return found
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def compiled(source: Path, flags: Sequence[str] = ()) -> Path:
    """The library made of ``source``, from the cache where it is known. raises: OSError, SubprocessError."""
    order = (*_FLAGS, *flags)
    mark = hashlib.sha256(
        source.read_bytes() + repr((order, platform.machine(), platform.libc_ver())).encode()
    )
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgepress"
    made = folder / f"{source.stem}-{mark.hexdigest()[:16]}.so"
    if made.is_file() and made.stat().st_uid == os.getuid():
        return made
    said = (sysconfig.get_config_var("CC") or "cc").split()[0]
    compiler = next((found for name in (said, "cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C compiler")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # ranks that come at once each make their own
        new = Path(scratch) / made.name
        command = [compiler, *order, str(source), "-o", str(new)]
        subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
        new.replace(made)
    return made
