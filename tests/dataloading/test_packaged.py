"""Folders inside installed packages are found without running the packages' code."""

import sys

import pytest
from forgepress.dataloading.packaged import folder_of
from forgepress.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import fails, with a model in carried_model/files and a smaller part of it deeper."""
    root = tmp_path / "carried_model"
    for folder in ("files", "files/pooling", "more/deep/down"):
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text("{}")
    (root / "__init__.py").write_text("raise RuntimeError('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_the_topmost_folder_that_holds_the_file_is_found_and_nothing_is_run(package):
    assert folder_of("package:carried_model", "config.json") == str(package / "files")
    assert folder_of("package:carried_model/more", "config.json") == str(package / "more/deep/down")
    assert "carried_model" not in sys.modules


def test_other_names_stay_as_they_are():
    assert folder_of("some/folder", "config.json") == "some/folder"


def test_two_folders_none_or_no_package_are_errors_that_say_what_to_do(package):
    (package / "twin").mkdir()
    (package / "twin" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"files, .*twin; name one of them: package:carried_model/FOLDER"):
        folder_of("package:carried_model", "config.json")
    with pytest.raises(ConfigError, match=r"no folder of the package holds vocab\.txt"):
        folder_of("package:carried_model", "vocab.txt")
    with pytest.raises(ConfigError, match="no package 'nobody_has_this' is installed"):
        folder_of("package:nobody_has_this", "config.json")
