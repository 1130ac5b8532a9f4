"""What all tests share: one thread per process, so that numbers and times do not depend on the machine's cores."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # what is missing is said at once, not after tries of the network
_ON_RANKS = ("tests.ranks", "tests.sessions", "tests.removals")  # whoever imports one of these


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under pytest-xdist all tests on ranks share one pool of them, in one process; the others go by file.

    (Its own groups, --dist loadgroup, are not seen by pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.partition("::")[0])

    return ByGroup(config, log)


@cache
def _group(file: Path) -> str:
    text = file.read_text()
    return "ranks" if any(f"forgepress.{module} import" in text for module in _ON_RANKS) else file.name
