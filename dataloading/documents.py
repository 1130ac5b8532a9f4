"""What a language model learns of packed documents."""

from torch import Tensor

from .making import BatchFunction, Columns, takes_draws

_IGNORED = -100  # a target that counts nothing


def next_tokens(columns: Columns) -> Columns:
    """Adds `targets`: the next token of the same document, -100 where there is none and in padding; all [rows, length].

    Where the tokens are called input_ids, `position` becomes position_ids: transformers' models see by positions that
    begin anew where a document begins, and let no token attend to another document (unless use_cache keeps keys).
    Forgepress' own gpt attends to earlier documents of a row, as GPT-2 did.
    """
    document = columns["document"]
    name = next(name for name in columns if name not in ("document", "position"))
    tokens = columns[name].long()
    targets = tokens.new_full(tokens.shape, _IGNORED)
    goes_on = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] > 0)
    targets[:, :-1] = tokens[:, 1:].where(goes_on, targets[:, 1:])
    more: dict[str, Tensor] = {"position_ids": columns["position"].long()} if name == "input_ids" else {}
    return {**columns, name: tokens, "targets": targets, **more}


class After:
    """Two functions of a batch as one. The second may want `Draws`."""

    def __init__(self, first: BatchFunction, second: BatchFunction) -> None:
        self._first, self._second = first, second
        self._draws = takes_draws(second)

    def __call__(self, columns: Columns, draws: object) -> Columns:
        """columns → columns."""
        columns = self._first(columns)
        return self._second(columns, draws) if self._draws else self._second(columns)
