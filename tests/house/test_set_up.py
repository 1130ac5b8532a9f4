"""What a newcomer types works as written: Makefile, constraints, the build script, the first screen of README."""

import os
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TARGETS = ("demo", "test", "check", "bench", "docs", "clean")


def constraints(tree) -> dict[str, Version]:
    lines = (tree.root / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def test_every_constraint_is_a_name_and_an_exact_version(tree):
    lines = (tree.root / "constraints.txt").read_text().splitlines()
    wrong = [ln for ln in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", ln)]
    assert wrong == []


def test_constraints_bring_no_cuda_packages(tree):
    assert [name for name in constraints(tree) if name.startswith(("nvidia", "triton", "cuda"))] == []


def test_constraints_pin_and_satisfy_every_direct_dependency(tree):
    project = tomllib.loads((tree.root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = constraints(tree)
    for text in [*project["dependencies"], *extras["dev"], *extras["examples"], *extras["benchmarks"]]:
        wanted = Requirement(text)
        pinned = pins.get(canonicalize_name(wanted.name))
        assert pinned is not None, f"{text}: not in constraints.txt"
        assert wanted.specifier.contains(pinned, prereleases=True), f"{text}: constraints.txt has {pinned}"


def test_every_target_of_the_makefile_can_be_planned(tree):
    for target in TARGETS:
        plan = subprocess.run(["make", "--dry-run", target], cwd=tree.root, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr
        assert plan.stdout.strip()


def test_the_makefile_explains_every_target(tree):
    shown = subprocess.run(["make"], cwd=tree.root, capture_output=True, text=True, check=True).stdout
    assert [target for target in TARGETS if f"make {target}" not in shown] == []


def test_the_build_script_runs_what_the_readme_says(tree):
    script = tree.root / ".ci/run"
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert "make test" in text and "timeout" in text


def test_the_two_commands_are_on_the_first_screen_of_the_readme(tree):
    first = "\n".join((tree.root / "README.md").read_text().splitlines()[:30])
    assert re.search(r"^make demo\b", first, re.MULTILINE)
    assert re.search(r"^make test\b", first, re.MULTILINE)


def test_the_demo_target_runs_the_demo_config_on_two_ranks(tree):
    plan = subprocess.run(["make", "--dry-run", "demo"], cwd=tree.root, capture_output=True, text=True).stdout
    assert "forgepress train examples/demo.yaml --ranks 2" in plan
    assert (tree.root / "examples/demo.yaml").is_file()


def test_every_relative_link_in_the_pages_leads_somewhere(tree):
    pages = [path for path in tree.tracked if path.suffix == ".md"]
    dead = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if (
                "://" not in target
                and not target.startswith("mailto:")
                and not (page.parent / target).exists()
            ):
                dead.append(f"{page.relative_to(tree.root)} → {target}")
    assert dead == []


def test_the_generated_pages_are_up_to_date(tree):
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=tree.root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-1500:]
