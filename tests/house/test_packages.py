"""What is installed is what is in the tree, and it works alone: in a fresh environment, in another folder."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

NOT_SHIPPED = {"tests", "benchmarks", "examples", "docs", "shared"}


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """stdout of a command; its whole output in the failure when it fails."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RANK", "WORLD", "LOCAL_"))
    }
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    """The wheel, built from a copy: a build in place would pick up what an earlier one left in build/."""
    copy, out = tmp_path_factory.mktemp("source") / "forgepress", tmp_path_factory.mktemp("wheel")
    for name in [*tree.shipped, "pyproject.toml", "README.md", "LICENSE"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree.root / name, copy / name)
    # No network and no second torch: setuptools of this environment builds, dependencies are not looked up.
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--wheel-dir", out, copy], cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """bin/ of a fresh environment with the wheel in it. Dependencies come from this environment's folders.

    A .pth line adds a folder without reading the .pth files inside it: an editable install stays out of sight.
    """
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    parents = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(parents) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet", "--no-deps"]
    run([*pip, "--no-index", "--force-reinstall", wheel], cwd=home)
    return home / "bin"


def test_the_package_list_is_the_folders_with_python_files(tree):
    listed = tomllib.loads((tree.root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(tree.root) for path in tree.sources}
    assert sorted(listed) == sorted(".".join(("forgepress", *folder.parts)) for folder in folders)


def test_every_package_folder_has_an_init(tree):
    folders = {path.parent for path in tree.sources}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_holds_the_shipped_files_and_nothing_else(tree, wheel):
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    assert sorted(names) == sorted(f"forgepress/{name}" for name in tree.shipped)


def test_tests_benchmarks_and_docs_stay_out_of_the_wheel(wheel):
    parts = {part for name in zipfile.ZipFile(wheel).namelist() for part in Path(name).parts[:2]}
    assert not parts & NOT_SHIPPED


def test_the_licence_is_in_the_wheel(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_demo_that_people_read_is_the_demo_that_ships(tree):
    assert (tree.root / "examples/demo.yaml").read_bytes() == (tree.root / "launch/demo.yaml").read_bytes()


def test_the_installed_wheel_is_what_the_fresh_environment_imports(fresh, tmp_path):
    place = run([fresh / "python", "-c", "import forgepress; print(forgepress.__file__)"], cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(fresh.parent)


def test_the_installed_command_runs_the_demo_from_another_folder(fresh, tmp_path):
    run([fresh / "forgepress", "train", "demo", "--ranks", "2"], cwd=tmp_path, OMP_NUM_THREADS="1")
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert summary["steps"] > 0
    assert summary["artifacts"]
    for artifact in summary["artifacts"]:
        assert artifact["bytes"] > 0


def test_the_installed_command_ends_with_2_on_a_config_that_is_not_there(fresh, tmp_path):
    done = subprocess.run(
        [fresh / "forgepress", "train", "nowhere.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
