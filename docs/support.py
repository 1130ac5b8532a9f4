"""Write trainer/support.yaml, which technique is proven where, from a run of the contract tests.

python docs/support.py                       run them (minutes) and write
python docs/support.py --from junit.xml …    from runs of `pytest tests/contract --junitxml=junit.xml` made with
                                             an empty table: what a table refuses cannot pass
"""

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import yaml
from forgepress.tests.engines import ENGINES
from forgepress.tests.meshes import CONTEXT_MESHES, MESHES

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/contract/test_every_technique_on_every_mesh.py",
    "tests/contract/test_every_technique_on_pieces_of_sequences.py",
    "tests/contract/test_every_removal_on_every_mesh.py",
)
NOTE = "# Written by docs/support.py from a run of the contract tests.\n"
_CASE = re.compile(r"test_gives_the_result_of_one_process\w*\[([\w.]+)-\d+-(.+)\]")


def main(arguments: list[str]) -> int:
    """Write the table; returns the exit code."""
    if arguments[:1] == ["--from"]:
        found = outcomes([Path(name) for name in arguments[1:]])
    else:
        write({}, {})
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "junit.xml"
            everything = {**os.environ, "FORGEPRESS_EVERYTHING": "1"}
            command = [sys.executable, "-m", "pytest", *TESTS, f"--junitxml={report}"]
            subprocess.run(command, cwd=ROOT, env=everything)
            found = outcomes([report])
    places = {**MESHES, **CONTEXT_MESHES, **ENGINES}
    proven = {name: [place for place in places if held.get(place)] for name, held in sorted(found.items())}
    write(places, proven)
    print(f"{len(proven)} techniques, {sum(map(len, proven.values()))} places proven")
    return 0


def write(places: dict[str, Any], proven: dict[str, list[str]]) -> None:
    """Replace trainer/support.yaml."""
    table = {"places": places, "proven": proven}
    text = yaml.safe_dump(table, sort_keys=False, width=110, default_flow_style=None)
    (ROOT / "trainer" / "support.yaml").write_text(NOTE + text, encoding="utf-8")


def outcomes(reports: list[Path]) -> dict[str, dict[str, bool]]:
    """Technique → place → whether all its variants passed there. raises: SystemExit for runs that proved nothing."""
    found: dict[str, dict[str, bool]] = {}
    for case in [case for report in reports for case in xml.etree.ElementTree.parse(report).iter("testcase")]:
        named = _CASE.fullmatch(case.get("name", ""))
        if named:
            passed = not any(case.find(word) is not None for word in ("failure", "error", "skipped"))
            held = found.setdefault(named[1], {})
            held[named[2]] = held.get(named[2], True) and passed
    if not found:
        raise SystemExit("these reports hold no contract test")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
