"""What all tests share: one thread per process, so that numbers and times do not depend on the machine's cores."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # what is missing is said at once, not after tries of the network
_ON_RANKS = ("tests.ranks", "tests.sessions", "tests.removals")  # whoever imports one of these


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Under pytest-xdist all tests on ranks share one pool of them, in one process; the others go by file."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item.path)))


@cache
def _group(file: Path) -> str:
    text = file.read_text()
    return "ranks" if any(f"forgepress.{module} import" in text for module in _ON_RANKS) else file.name
