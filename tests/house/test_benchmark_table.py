"""README's measurements are read off files, never typed."""

import importlib
import importlib.util
import json

import pytest


@pytest.fixture(scope="module")
def table(tree):
    spec = importlib.util.spec_from_file_location("table_under_test", tree.root / "benchmarks/table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result(tmp_path):
    rows = [
        {"case": "ours", "value": 1.23456, "unit": "ms", "low": 1.2, "high": 1.31, "repeats": 5},
        {"case": "a | b", "value": 12345, "unit": "bytes"},
    ]
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"question": "How fast?", "machine": "2 cores", "rows": rows}))
    return path


def test_each_case_is_one_row_and_peers_share_their_question(table, result):
    _, _, first, second = table.table([result]).splitlines()
    assert (
        first == "| [How fast?](benchmarks/speed.py) | ours | 1.235 ms (1.2 to 1.31, 5 repeats) | 2 cores |"
    )
    assert second == "|  | a \\| b | 12,345 bytes |  |"


def test_a_page_elsewhere_links_to_the_scripts_and_a_short_one_has_the_cases_that_are_told(table, result):
    assert "(../benchmarks/speed.py) | ours" in table.table([result], folder="../benchmarks")
    assert table.table([result], told={"speed": ["a*"]}).splitlines()[2:] == [
        "| [How fast?](benchmarks/speed.py) | a \\| b | 12,345 bytes | 2 cores |"
    ]


def test_the_table_replaces_only_what_is_between_the_comments(table):
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.put(page, "new")
    assert once == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    assert table.put(once, "new") == once


def test_a_page_without_the_comments_is_refused(table):
    with pytest.raises(ValueError, match="want the comments"):
        table.put("nothing here", "new")


def test_a_result_without_its_machine_is_refused_by_name(table, result):
    result.write_text(json.dumps({"question": "How fast?", "rows": []}))
    with pytest.raises(ValueError, match=r"speed\.json: has no machine"):
        table.table([result])


def test_the_tables_are_those_of_the_results(table):
    assert table.main(["--check"]) == 0


def test_every_result_was_made_by_a_script_that_is_there(tree):
    folder = tree.root / "benchmarks"
    assert [
        path.name for path in folder.glob("results/*.json") if not (folder / f"{path.stem}.py").is_file()
    ] == []


def test_every_script_is_importable_without_its_peers(tree):
    names = sorted(path.stem for path in (tree.root / "benchmarks").glob("*.py"))
    assert "step_time" in names
    for name in names:
        importlib.import_module(f"forgepress.benchmarks.{name}")
