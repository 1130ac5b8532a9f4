"""What must not be in a tracked file: paths of one machine, unfinished words, secrets, files that grew too long."""

import re

LONGEST = 350  # lines of a Python file; 120 is the aim
MAY_BE_LONGER: set[str] = set()  # kept empty: split the file instead

# Written in pieces, so that this file passes its own test.
MACHINE_PATHS = re.compile(
    "|".join(rf"(?<![\w.-])/{top}/\w" for top in ("work", "root", "home", "Users", "opt"))
)
UNFINISHED = re.compile(
    "|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"\bTB" + r"D\b"))
    + "|(?i:lorem "
    + "ipsum|coming "
    + "soon|not implemented "
    + "yet|will be added "
    + "later)"
)
SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|[0-9a-f]{40}\b(?=.*wandb))"
)


def lines_of(tree):
    """(file, line number, line) of every tracked text file but the licence."""
    for path in tree.tracked:
        if path.name == "LICENSE":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        for number, line in enumerate(text.splitlines(), 1):
            yield path.relative_to(tree.root).as_posix(), number, line


def test_no_file_names_a_path_of_one_machine(tree):
    found = [f"{f}:{n}: {line.strip()[:120]}" for f, n, line in lines_of(tree) if MACHINE_PATHS.search(line)]
    assert not found, "\n".join(found)


def test_no_file_holds_an_unfinished_word(tree):
    found = [f"{f}:{n}: {line.strip()[:120]}" for f, n, line in lines_of(tree) if UNFINISHED.search(line)]
    assert not found, "\n".join(found)


def test_no_file_holds_something_that_looks_like_a_key(tree):
    assert [f"{f}:{n}" for f, n, line in lines_of(tree) if SECRETS.search(line)] == []


def test_no_python_file_is_longer_than_a_reader_can_hold(tree):
    long = {}
    for path in tree.tracked:
        name = path.relative_to(tree.root).as_posix()
        if path.suffix == ".py" and name not in MAY_BE_LONGER:
            long[name] = len(path.read_text().splitlines())
    assert {name: count for name, count in long.items() if count > LONGEST} == {}


def test_every_text_file_ends_with_one_newline(tree):
    texts = [path for path in tree.tracked if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".sh")]
    wrong = [str(p) for p in texts if (t := p.read_text()) and (not t.endswith("\n") or t.endswith("\n\n"))]
    assert wrong == []


def test_the_patterns_find_what_they_are_for():
    for bad in ("see /wo" + "rk/main", '"/ro' + 'ot/x"', "cd /ho" + "me/me"):
        assert MACHINE_PATHS.search(bad)
    for good in ("framework/root/home", "https://example.org/work/papers", "a/work/b"):
        assert not MACHINE_PATHS.search(good)
    assert UNFINISHED.search("# TO" + "DO: finish") and not UNFINISHED.search("todos are a list")
