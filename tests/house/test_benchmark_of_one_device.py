"""The script that measures a GPT on one GPU runs on a CPU too, with a model of a few thousand weights."""

import os
import re
import subprocess
import sys


def test_it_trains_bare_and_in_the_trainer_and_compares_them(tree):
    script = tree.root / "benchmarks/gpt_one_device.py"
    words = ["--tiny", "--no-compile", "--rounds=2", "--steps=2", "--batch=4", "--cases=forgepress", "--show"]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), *words, "--peak=1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w[^\n]*?) +(\d+\.\d{4}) ?\S*$", done.stdout, re.MULTILINE)
    values = {name: float(value) for name, value in rows}
    assert values["parameters"] > 1000
    assert values["bare: tokens a second"] > 0 and values["forgepress: tokens a second"] > 0
    assert values["forgepress: tokens/s of it / of the bare loop"] > 0
    assert 0 <= values["forgepress: MFU"] < 1
