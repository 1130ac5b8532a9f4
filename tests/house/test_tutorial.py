"""The tutorial's files run as they are printed."""

import os
import re
import subprocess
import sys

import pytest


def files_of(page: str) -> dict[str, str]:
    """File name → text of every Python block that begins with a comment that names a file."""
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, flags=re.DOTALL))


@pytest.fixture(scope="module")
def folder(tree, tmp_path_factory):
    place = tmp_path_factory.mktemp("tutorial")
    for name, text in files_of((tree.root / "docs/adding_a_technique.md").read_text()).items():
        (place / name).write_text(text)
    return place


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_page_holds_a_technique_and_its_test(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["binary_weights.py", "test_binary_weights.py"]


def test_the_tutorials_own_test_passes(folder):
    out = python(
        folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "test_binary_weights.py"
    )
    assert "2 passed" in out


def test_the_tutorials_technique_is_found_by_its_path_and_refuses_what_it_cannot_do(folder):
    script = "from forgepress.compression import build\n"
    script += "assert build('binary_weights:BinaryWeights', {'clip': 1.5}).settings()['clip'] == 1.5\n"
    script += "try:\n    build('binary_weights:BinaryWeights', {'clip': -1.0})\n"
    script += "except Exception as error:\n    print(type(error).__name__, error)\n"
    said = python(folder, "-c", script)
    assert "ConfigError" in said and "clip=-1.0" in said
