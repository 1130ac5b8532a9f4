"""From a config's words to a source."""

from collections.abc import Mapping
from difflib import get_close_matches
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .concat import ConcatSource
from .digits import digits_source
from .folders import folder_source
from .idx import idx_source
from .mixing import shares_of
from .parquet import ParquetSource
from .source import Source
from .split import Split, check_fraction, check_split
from .tables import FORMATS, table_source
from .text import text_source
from .tokens import Tokenizer
from .transform import Transform, transformed

BUILT_IN = ("digits",)
KINDS: dict[str, tuple[str, ...]] = {
    "idx": (),
    "text": ("length", "tokens", "valid_fraction"),
    **{kind: ("length", "tokenizer", "valid_fraction") for kind in FORMATS},
    "csv": ("length", "tokenizer", "separator", "valid_fraction"),
    "parquet": ("length", "tokenizer", "stream", "valid_fraction"),
    "images": ("size", "valid_fraction"),
    "mix": (),
}
"""Word that says which kind of data → the other words it may have; inputs, targets and transform go with all."""

_LOADERS_OWN = (
    "batch", "tail", "shuffle", "prefetch", "augment", "function", "threads", "mode", "cache", "on_error",
    "most_errors", "buckets", "pack",
)  # fmt: skip
_COMMON = ("inputs", "targets", "transform")


def load_source(spec: Mapping[str, Any] | str, split: str = "train") -> Source:
    """The source that a config's `data` asks for, transformed, ready for a Loader.

    spec:   a built-in name (digits); {idx: DIR}; {text: FILE, length: T, tokens: characters|bytes}; {parquet | json |
            csv | lines: GLOB} or {arrow: DIR}, each with inputs, targets, transform. Text columns need length (bytes)
            or tokenizer: {name: FOLDER or package:NAME, length, test_length, token_types}; csv may have a separator,
            parquet stream: true (read row group by row group, without a copy). With buckets or pack in the block,
            lists and tokens keep their lengths. {images: DIR, size: N}: DIR/CLASS/….
            {mix: [SPEC, …]}: several, each with a weight or all without.
            Files can be {train: …, test: …}; a single text or table is split by valid_fraction (0.1).
            Also the whole `data` block with such a value under `source`; the loader's own words are passed over.
    split:  train or test.
    raises: ConfigError for unknown words or values; DataError for missing, damaged or unfit data.
    """
    part = check_split(split)
    words = _flat(spec)
    if "name" in words:
        return _finish(_built_in(words), words, part)
    kinds = [kind for kind in KINDS if kind in words]
    if len(kinds) != 1:
        raise ConfigError(
            f"data.source has {', '.join(kinds) or ', '.join(map(str, words)) or 'nothing'}; want exactly one of "
            f"{', '.join(KINDS)}, or a name: {', '.join(BUILT_IN)}"
        )
    kind = kinds[0]
    _check_words(words, kind)
    ragged = isinstance(spec, Mapping) and bool(spec.get("buckets") or spec.get("pack"))
    if ragged and kind not in (*FORMATS, "mix"):
        raise ConfigError(
            f"data.source.{kind} has rows of one length; data.buckets and data.pack want {', '.join(FORMATS)} with a "
            "tokenizer, or with a column of lists"
        )
    source = _finish(kind, words, part, ragged=ragged)
    if isinstance(spec, Mapping) and spec.get("pack"):
        source.row_length, source.packed = int(spec["pack"]["length"]), True  # type: ignore[attr-defined]
    return source


def _finish(kind: str, words: dict[str, Any], split: Split, *, ragged: bool = False) -> Source:
    transform = Transform.from_words(words.get("transform") or {})
    settings = {word: words[word] for word in KINDS.get(kind, ()) if words.get(word) is not None}
    if "valid_fraction" in settings:
        settings["valid_fraction"] = check_fraction(settings["valid_fraction"])
    if "tokenizer" in settings:
        settings["tokenizer"] = Tokenizer.from_words(settings["tokenizer"])
    if kind == "mix":
        return _mixed(words, split, ragged)
    if kind == "images":
        place = _folder(words[kind], kind)
        if "size" not in settings:
            raise ConfigError("data.source.images needs size, the pixels of a side, such as size: 64")
        return transformed(folder_source(place, split, **settings), transform)
    if kind in FORMATS:
        names = {word: words[word] for word in ("inputs", "targets") if words.get(word)}
        if settings.pop("stream", False):
            if ragged:
                raise ConfigError("data.source.parquet: stream excludes buckets and pack; leave stream out")
            return transformed(_streamed(words[kind], split, names, settings), transform)
        source = table_source(kind, _files(kind, words[kind]), split, **names, **settings, ragged=ragged)
        return transformed(source, transform)
    for word in ("inputs", "targets"):
        if words.get(word) not in (None, word):
            raise ConfigError(
                f"data.{word}={words[word]!r}: {kind} has the columns inputs and targets; leave it out"
            )
    if kind == "text":
        if "length" not in settings:
            raise ConfigError(
                "data.source.text needs length, the number of tokens in a row, such as length: 64"
            )
        files = {name: paths[0] for name, paths in _files(kind, words[kind]).items()}
        return transformed(text_source(files, split, **settings), transform)
    source = digits_source(split) if kind == "digits" else idx_source(_folder(words[kind], kind), split)
    return transformed(source, transform)


def _flat(spec: Mapping[str, Any] | str) -> dict[str, Any]:
    """All words on one level, without the loader's own; a built-in name as {"name": …}."""
    if isinstance(spec, str):
        return {"name": spec}
    words = {word: value for word, value in spec.items() if word not in _LOADERS_OWN and value is not None}
    if "source" not in words:
        return words
    source = words.pop("source")
    inner = _flat(source) if isinstance(source, str | Mapping) else {"source": source}
    if twice := sorted(words.keys() & inner.keys()):
        raise ConfigError(f"data: {', '.join(twice)} is given twice, beside source and in it; want it once")
    return {**words, **inner}


def _built_in(words: dict[str, Any]) -> str:
    name = words["name"]
    if name not in BUILT_IN:
        raise ConfigError(
            f"data.source {name!r} is not known; want {', '.join(BUILT_IN)}, or a mapping with one of "
            f"{', '.join(KINDS)}"
        )
    _check_words(words, "name")
    return name


def _check_words(words: dict[str, Any], kind: str) -> None:
    known = (kind, *KINDS.get(kind, ()), *_COMMON)
    for word in words:
        if word not in known:
            near = get_close_matches(str(word), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"data.source: unknown word {word!r}; {kind} takes {', '.join(known)}{hint}")


def _folder(value: Any, kind: str) -> Path:
    if not isinstance(value, str | Path) or not Path(value).is_dir():
        raise DataError(f"data.source.{kind}: {value!r} is no folder; want the folder with the files")
    return Path(value)


def _streamed(value: Any, split: Split, names: dict[str, str], settings: dict[str, Any]) -> Source:
    """Parquet files as they are; without {train: …, test: …} all of their rows are for training."""
    files = _files("parquet", value)
    if extra := sorted(settings.keys() - {"length"}):
        raise ConfigError(
            f"data.source.parquet: stream excludes {', '.join(extra)}; name files for train and test"
        )
    if split not in files and (split == "test" or "all" not in files):
        raise DataError(
            f"data.source.parquet names no files for {split}; add some: parquet: {{train: GLOB, {split}: GLOB}}"
        )
    chosen = files.get(split) or files["all"]
    return ParquetSource(chosen, {old: new for new, old in names.items()}, length=settings.get("length"))


def _mixed(words: dict[str, Any], split: Split, ragged: bool) -> Source:
    """Several sources with common columns; their weights count for training."""
    entries = words["mix"]
    if (
        not isinstance(entries, list | tuple)
        or len(entries) < 2
        or not all(isinstance(e, Mapping) for e in entries)
    ):
        raise ConfigError(
            "data.source.mix wants a list of two or more sources, such as [{idx: DIR, weight: 2}, …]"
        )
    shared = {word: words[word] for word in _COMMON if words.get(word) is not None}
    given = [entry.get("weight") for entry in entries]
    if any(weight is None for weight in given) != all(weight is None for weight in given):
        raise ConfigError(f"data.source.mix has weights {given}; want one for each source, or none")
    plain = [{word: value for word, value in entry.items() if word != "weight"} for entry in entries]
    more = {"buckets": True} if ragged else {}
    source = ConcatSource([load_source({**shared, **entry, **more}, split) for entry in plain])
    if split == "train" and given[0] is not None:
        shares_of(given, len(given))  # refused here, before anything else is opened
        source.weights = given
    return source


def _files(kind: str, value: Any) -> dict[str, list[Path]]:
    """{"all": files} or {"train": files, "test": files}, each sorted and not empty."""
    if not isinstance(value, Mapping):
        return {"all": _found(kind, value)}
    if not value or set(value) - {"train", "test"}:
        raise ConfigError(
            f"data.source.{kind} has {', '.join(map(str, value)) or 'nothing'}; want train and test"
        )
    return {name: _found(kind, pattern) for name, pattern in value.items()}


def _found(kind: str, value: Any) -> list[Path]:
    patterns = value if isinstance(value, list | tuple) else [value]
    files: list[Path] = []
    for pattern in patterns:
        if not isinstance(pattern, str | Path):
            raise ConfigError(
                f"data.source.{kind}={value!r}; want a path, a pattern such as data/*.{kind}, or a list"
            )
        matches = [str(pattern)] if Path(pattern).exists() else sorted(glob(str(pattern), recursive=True))
        if not matches:
            raise DataError(
                f"data.source.{kind}: nothing is at {str(pattern)!r}; want an existing file or pattern"
            )
        files += map(Path, matches)
    if kind in ("arrow", "text") and len(files) != 1:
        raise DataError(f"data.source.{kind}: {value!r} is {len(files)} paths; want one")
    return files
