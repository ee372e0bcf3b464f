"""The ids of tokens that a server names by their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longrope.servers.completion import TokenName


class TokenTexts:
    """The ids of a tokenizer's tokens by text; a text that several tokens share has none.

    Args:
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, int | None] = {}

    def find(self, name: TokenName) -> int | None:
        """Return the id of a token; None if its text is not that of exactly one token."""
        if isinstance(name, int):
            return name
        if not self._ids:
            self._read_vocabulary()
        return self._ids.get(name)

    def _read_vocabulary(self) -> None:
        for piece, token in self._tokenizer.get_vocab().items():
            text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            for spelling in {text, piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " "), piece}:
                self._ids[spelling] = None if self._ids.get(spelling, token) != token else token
