"""A text column as tokens: a tokenizer of the transformers library is applied once and the result kept on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .fingerprint import combined, of_files
from .packaged import folder_of
from .preparing import Progress, alone
from .quiet import quiet
from .split import Split

_FILES = ("*token*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text → input_ids and attention_mask, [length] each; shorter texts are padded, longer ones cut.

    source: transformers' AutoTokenizer, from a folder: nothing is downloaded and no code of others is run.
    cost:   `datasets` keeps the tokens of every (table, tokenizer, length) in its cache folder; 67,000 phrases take
            about 3 s on one core the first time.
    """

    name: str
    """Folder with the tokenizer's files, or package:NAME for one in an installed Python package."""
    length: int | None = None
    """Tokens in a row; longer texts are cut. Empty, for packed texts alone: texts are not cut."""
    test_length: int | None = None
    """Tokens in a row of the held-out split; empty: as `length`."""
    token_types: bool = False
    """Give token_type_ids too."""

    @classmethod
    def from_words(cls, words: Any) -> "Tokenizer":
        """From config words. raises: ConfigError for an unknown word, a missing one or a wrong value."""
        if not isinstance(words, Mapping):
            raise ConfigError(
                f"data.source.tokenizer={words!r}; want a mapping such as {{name: FOLDER, length: 64}}"
            )
        known = [field.name for field in fields(cls)]
        if unknown := [str(word) for word in words if word not in known]:
            raise ConfigError(
                f"data.source.tokenizer: unknown {', '.join(unknown)}; known: {', '.join(known)}"
            )
        if words.get("name") is None:
            raise ConfigError("data.source.tokenizer: no name; want for example {name: FOLDER, length: 64}")
        return cls(**{word: value for word, value in words.items() if value is not None})

    def __post_init__(self) -> None:
        for word in ("length", "test_length"):
            value = getattr(self, word)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"data.source.tokenizer.{word}={value!r}; want a number of tokens, 1 or more"
                )
        if not isinstance(self.name, str) or not isinstance(self.token_types, bool):
            raise ConfigError(
                f"data.source.tokenizer: name={self.name!r}, token_types={self.token_types!r}; want a folder and "
                "true or false"
            )

    def tokenize(
        self, table: Any, column: str, split: Split, mark: str, *, ragged: bool = False
    ) -> "Tokenized":
        """The `datasets.Dataset` with token columns in place of the text `column`, prepared or from the cache.

        mark:   fingerprint of the table's contents.   ragged: as many tokens as each text has, no padding.
        raises: DataError for a folder without a tokenizer, or a column that is no text; ConfigError for a length
                beyond what the tokenizer's model takes.
        """
        from datasets.config import HF_DATASETS_CACHE

        folder = Path(folder_of(self.name, "tokenizer_config.json"))
        length = self.length if split == "train" or self.test_length is None else self.test_length
        if length is None and not ragged:
            raise ConfigError(
                "data.source.tokenizer: no length; want one, such as {name: FOLDER, length: 64} (only data.pack and "
                "data.buckets do without)"
            )
        tokenizer = _load(folder, length)
        if getattr(table.features[column], "dtype", None) not in ("string", "large_string"):
            raise DataError(
                f"column {column!r} is {table.features[column]}; a tokenizer takes a column of text"
            )
        files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
        mark = combined(
            mark, column, of_files(files), length, self.token_types, *(["ragged"] if ragged else [])
        )
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if self.token_types else [])]
        cache = Path(HF_DATASETS_CACHE) / "forgepress" / f"{mark}.arrow"
        progress = Progress(len(table), "texts")

        def encoded(rows: dict[str, Any]) -> dict[str, Any]:
            progress.add(len(rows[column]))
            return _encoded(tokenizer, rows[column], names, length, padded=not ragged)

        with (
            alone(cache.with_suffix(".lock")),
            quiet(),
        ):  # one process of the node does it, the others find it done
            done = table.map(
                encoded,
                batched=True,
                remove_columns=[column],
                new_fingerprint=mark,
                cache_file_name=str(cache),  # written aside and moved: a killed run leaves no half of it
                load_from_cache_file=True,
            )
        vocabulary = tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        return Tokenized(done, tuple(names), vocabulary, mark)


@dataclass(frozen=True)
class Tokenized:
    """A table whose text has become tokens."""

    table: Any
    """The `datasets.Dataset`."""
    columns: tuple[str, ...]
    """Names of the token columns."""
    vocabulary: tuple[str, ...]
    """Every token by its number."""
    fingerprint: str
    """Of the table, the tokenizer's files and the length."""


def _load(folder: Path, length: int | None) -> Any:
    if not folder.is_dir():
        raise DataError(
            f"data.source.tokenizer.name: {str(folder)!r} is no folder; want the folder with the tokenizer's files, "
            "or package:NAME (nothing is downloaded)"
        )
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{folder}: the tokenizer has no padding token; set one in its tokenizer_config.json"
        )
    if length is not None and length > tokenizer.model_max_length:
        raise ConfigError(
            f"data.source.tokenizer: length {length} is more than the {tokenizer.model_max_length} tokens that "
            f"{folder} is made for; want at most so many"
        )
    return tokenizer


def _encoded(
    tokenizer: Any, texts: Sequence[str | None], names: list[str], length: int | None, *, padded: bool
) -> dict[str, Any]:
    """Column → int32 [texts, length], or where not `padded` a list of int32 arrays."""
    if None in texts:
        raise DataError(
            f"a text is missing near {[text for text in texts if text][:1]}; fill or drop such rows"
        )
    encoded = tokenizer(
        list(texts),
        padding="max_length" if padded else False,
        truncation=length is not None,
        max_length=length,
        return_attention_mask=True,
        return_token_type_ids="token_type_ids" in names,
    )
    if not padded:
        return {name: [np.asarray(row, dtype=np.int32) for row in encoded[name]] for name in names}
    return {name: np.asarray(encoded[name], dtype=np.int32) for name in names}
