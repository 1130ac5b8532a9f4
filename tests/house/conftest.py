"""The source tree as plain values, for the tests that hold the house together."""

import ast
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGES = ("trainer", "parallel", "compression", "dataloading", "launch")


@dataclass(frozen=True)
class Tree:
    """A checkout. `modules` are those that ship; `tracked` is everything that git knows."""

    root: Path

    @cached_property
    def tracked(self) -> list[Path]:
        """Every file that git tracks and that is there."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached"], cwd=self.root, capture_output=True, text=True, check=True
        )
        return [path for name in listed.stdout.split("\0") if name and (path := self.root / name).is_file()]

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Dotted name (forgepress.parallel.mesh) → syntax tree, for the root and the five packages."""
        return {self.name_of(path): ast.parse(path.read_text(), str(path)) for path in self.sources}

    @cached_property
    def sources(self) -> list[Path]:
        """Python files that ship."""
        inside = [path for package in PACKAGES for path in sorted((self.root / package).rglob("*.py"))]
        return [
            *sorted(self.root.glob("*.py")),
            *(path for path in inside if "__pycache__" not in path.parts),
        ]

    @cached_property
    def shipped(self) -> list[str]:
        """Every file that belongs into the wheel, relative to the root: Python and package data."""
        inside = [path for package in PACKAGES for path in sorted((self.root / package).rglob("*"))]
        files = [*self.root.glob("*.py"), self.root / "py.typed", *inside]
        relative = [path.relative_to(self.root) for path in files if path.is_file()]
        return sorted(path.as_posix() for path in relative if "__pycache__" not in path.parts)

    def name_of(self, path: Path) -> str:
        """The dotted name of a source file."""
        parts = ("forgepress", *path.relative_to(self.root).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def is_package(self, name: str) -> bool:
        """Whether the dotted name is a folder."""
        return self.root.joinpath(*name.split(".")[1:]).is_dir()


@pytest.fixture(scope="session")
def tree() -> Tree:
    return Tree(Path(__file__).resolve().parents[2])
