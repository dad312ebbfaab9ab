"""A tokenizer for tests of laws: a handful of pieces of text, read longest first."""

from __future__ import annotations

from collections.abc import Sequence


class PieceTokenizer:
    """Tokens are the given pieces; "<...>" are special ones. A text that cannot be said raises ValueError."""

    chat_template = None
    eos_token_id = None

    def __init__(self, *pieces: str, begin: str | None = None):
        """begin: the special piece that a text begins with."""
        self.pieces, self._begin = pieces, begin

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [self.pieces.index(self._begin)] if add_special_tokens and self._begin else []
        while text:
            fitting = [piece for piece in self.pieces if text.startswith(piece)]
            if not fitting:
                raise ValueError(f"no token for {text[0]!r}")
            ids.append(self.pieces.index(max(fitting, key=len)))
            text = text[len(self.pieces[ids[-1]]) :]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        pieces = [self.pieces[token] for token in token_ids if token < len(self.pieces)]
        return "".join(piece for piece in pieces if not (skip_special_tokens and piece.startswith("<")))
