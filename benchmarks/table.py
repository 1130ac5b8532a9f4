"""Write the tables of measurements from the files in benchmarks/results/: README's rows and docs/benchmarks.md.

A script of this folder answers one question and leaves one file, benchmarks/results/<script>.json:

    {"question": "How much does …?", "machine": "2 CPU cores, torch 2.13.0",
     "rows": [{"case": "forgepress, 4 ranks", "value": 1.25, "unit": "ms", "low": 1.2, "high": 1.31, "repeats": 5}]}

Peers are cases of the same run. `low`, `high` and `repeats` are optional; nothing else reaches the tables, so no
number in them was typed by hand. README has the cases that `TOLD` names; cases that end in "processor time" stay in
the files.

    python benchmarks/table.py            write both
    python benchmarks/table.py --check    write nothing; exit 1 if one of them is out of date
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NEEDED = {"question", "machine", "rows"}
PAGE = f"# Measurements\n\nWritten by benchmarks/table.py; README has the short form.\n\n{BEGIN}\n{END}\n"
# Script → globs over the cases that README tells; the first three of a script that is not here.
TOLD: dict[str, list[str]] = {
    "cifar_quantization": ["*float", "* trained on the grid: test error", "2 bits, quantized*"],
    "distillation_cost": ["*shard=2", "*by hand", "with cache*"],
    "exact_quantile": ["*/*"],
    "loader_images": [
        "*times DataLoader, 0*",
        "*times DataLoader, 2*, same*",
        "*times litdata, 0*",
        "*, share of*",
    ],
    "loader_ragged": [
        "forgepress, packed",
        "forgepress, padded",
        "*packed, times DataLoader*",
        "*times grain*",
    ],
    "loader_real": ["*times*"],
    "loader_tokens": ["*times DataLoader*", "*times litdata, 0*", "*times MosaicML*, 2*", "*, share of*"],
    "minilm_end_to_end": ["*smaller*", "*change*", "*faster*"],
    "minilm_structured": ["change*", "faster*"],
    "mnist_surgery": ["*change*", "*smaller*"],
    "pipeline_bubble": ["*: step / step by theory"],
    "qat_step_cost": ["weights and inputs /*", "weights /*"],
    "slimming_step_cost": ["slimming*", "group*"],
    "step_time": ["*forgepress / by hand, indexed", "*forgepress / by hand, DataLoader", "1 process: [ALt]*"],
    "surgery_lenet300": ["times*", "*artifact", "the paper*"],
    "surgery_lenet5": ["times*", "*artifact", "the paper*"],
    "technique_overhead": ["*/*"],
}


def main(arguments: list[str]) -> int:
    """Write or compare; returns the exit code."""
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    readme, page = ROOT / "README.md", ROOT / "docs/benchmarks.md"
    new = {
        readme: put(readme.read_text(encoding="utf-8"), table(files, told=TOLD)),
        page: put(PAGE, table(files, folder="../benchmarks")),
    }
    stale = [path for path, text in new.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            name = path.relative_to(ROOT)
            print(f"the table in {name} is not that of benchmarks/results/; run `python benchmarks/table.py`")
        else:
            path.write_text(new[path], encoding="utf-8")
    return int("--check" in arguments and bool(stale))


def table(files: list[Path], *, folder: str = "benchmarks", told: dict[str, list[str]] | None = None) -> str:
    """The Markdown table of the results in `files`, one row a case. raises: ValueError naming a wrong file.

    folder: of the scripts, seen from the page.   told: only these cases, see `TOLD`.
    """
    lines = ["| Question | Case | Result | Measured on |", "|---|---|---|---|"]
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        if missing := NEEDED - set(result):
            raise ValueError(
                f"{file.name}: has no {', '.join(sorted(missing))}; want a result as table.py describes"
            )
        rows = [row for row in result["rows"] if not row["case"].endswith("processor time")]
        if told is not None:
            globs = told.get(file.stem)
            rows = rows[:3] if globs is None else [row for row in rows if _is_among(row["case"], globs)]
        for index, row in enumerate(rows):
            question = f"[{result['question']}]({folder}/{file.stem}.py)" if index == 0 else ""
            cells = (question, row["case"], measured(row), result["machine"] if index == 0 else "")
            lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _is_among(case: str, globs: list[str]) -> bool:
    return any(fnmatchcase(case, glob) for glob in globs)


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
