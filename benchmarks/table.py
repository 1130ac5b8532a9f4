"""Write README's table of measurements from the files in benchmarks/results/.

A script of this folder answers one question and leaves one file, benchmarks/results/<script>.json:

    {"question": "How much does …?", "machine": "2 CPU cores, torch 2.13.0",
     "rows": [{"case": "forgepress, 4 ranks", "value": 1.25, "unit": "ms", "low": 1.2, "high": 1.31, "repeats": 5}]}

Peers are cases of the same run. `low`, `high` and `repeats` are optional; nothing else reaches the table, so no
number in it was typed by hand. Cases that end in "processor time" stay in the files.

    python benchmarks/table.py            write the table between the two comments in README.md
    python benchmarks/table.py --check    write nothing; exit 1 if the table is out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NEEDED = {"question", "machine", "rows"}


def main(arguments: list[str]) -> int:
    """Write or compare; returns the exit code."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = put(old, table(sorted((ROOT / "benchmarks/results").glob("*.json"))))
    if "--check" in arguments:
        if new != old:
            print(
                "the table in README.md is not that of benchmarks/results/; run `python benchmarks/table.py`"
            )
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


def table(files: list[Path]) -> str:
    """The Markdown table of the results in `files`, one row a case. raises: ValueError naming a wrong file."""
    lines = ["| Question | Case | Result | Measured on |", "|---|---|---|---|"]
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        if missing := NEEDED - set(result):
            raise ValueError(
                f"{file.name}: has no {', '.join(sorted(missing))}; want a result as table.py describes"
            )
        rows = [row for row in result["rows"] if not row["case"].endswith("processor time")]
        for index, row in enumerate(rows):
            question = f"[{result['question']}](benchmarks/{file.stem}.py)" if index == 0 else ""
            cells = (question, row["case"], measured(row), result["machine"] if index == 0 else "")
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def measured(row: dict[str, Any]) -> str:
    """`1.25 ms (1.2 to 1.31, 5 repeats)`."""
    text = f"{show(row['value'])} {row.get('unit', '')}".strip()
    notes = []
    if "low" in row and "high" in row:
        notes.append(f"{show(row['low'])} to {show(row['high'])}")
    if "repeats" in row:
        notes.append(f"{row['repeats']} repeats")
    return f"{text} ({', '.join(notes)})" if notes else text


def show(value: Any) -> str:
    """Four significant digits, whole numbers with separators."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def put(page: str, text: str) -> str:
    """`page` with `text` between the two comments. raises: ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: want the comments {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
