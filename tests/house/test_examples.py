"""Every config that people read can be loaded, and every example is one that they can find."""

import re

from forgepress.trainer.config import RunConfig


def test_every_whole_config_in_the_pages_is_valid(tree, tmp_path):
    seen = 0
    for page in [path for path in tree.tracked if path.suffix == ".md"]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL):
            if "model:" not in block or "phases:" not in block:
                continue  # a part of a config
            file = tmp_path / f"{page.stem}-{seen}.yaml"
            file.write_text(block)
            assert RunConfig.load(file).phases
            seen += 1
    assert seen >= 1


def test_every_example_is_valid_and_its_mesh_is_small_enough_for_one_machine(tree):
    examples = sorted((tree.root / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        config = RunConfig.load(example)
        assert config.name == example.stem
        assert config.parallel.ranks <= 8


def test_every_example_begins_by_saying_what_it_shows(tree):
    silent = [
        path.name
        for path in sorted((tree.root / "examples").glob("*.yaml"))
        if not path.read_text().startswith("# ")
    ]
    assert silent == []
