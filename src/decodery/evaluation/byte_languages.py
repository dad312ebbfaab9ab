"""Small languages whose laws are known in bytes: every text is enumerated, with the tokens that a tokenizer makes of it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from decodery._lazy import np

if TYPE_CHECKING:
    from decodery.testing import SmallLanguageModel

BEGIN, END = "<begin>", "<end>"
LETTERS = "ab"
PAIRS = (("a", "b"), ("ab", "a"), ("b", "b"), ("aba", "b"))
"""Merges in their order. The last one makes a token that no text has."""
SPACED = (
    ("\u0120", "\u0120"),
    ("\u0120", "a"),
    ("\u00c3", "\u00a9"),
    ("a", "a"),
    ("\u0120a", "a"),
    ("\u00c3\u00a9", "a"),
)
"""Byte-level merges, with a token of two spaces, one of a space and a, one of \u00e9, and none of a space and \u00e9."""


class PairTokenizer:
    """A tokenizer of byte pairs. alphabet: single tokens. merges: in their order. byte_level: behind GPT-2's expression, whose
    alphabet is all bytes."""

    chat_template = None

    def __init__(self, alphabet: Iterable[str], merges: Sequence[tuple[str, str]], byte_level: bool = False):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        signs = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else list(alphabet)
        words = list(dict.fromkeys([*signs, *(one + other for one, other in merges)]))
        self.backend_tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, list(merges)))
        if byte_level:
            self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            self.backend_tokenizer.decoder = decoders.ByteLevel()
        else:
            self.backend_tokenizer.decoder = decoders.Fuse()
        self.backend_tokenizer.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        self.bos_token_id, self.eos_token_id = vocabulary[BEGIN], vocabulary[END]
        self.all_special_ids = [self.bos_token_id, self.eos_token_id]

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text).ids
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        text: str = self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, token: int) -> str | None:
        written: str | None = self.backend_tokenizer.id_to_token(token)
        return written

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocabulary


class ByteLanguage:
    """All texts over some signs up to a length, and a model that gives them probabilities by their own tokens alone.

    signs: of the texts. length: the most signs of a text. tokenizer: whose tokens the model scores. seed: of its law.
    """

    def __init__(self, signs: str, length: int, tokenizer: PairTokenizer, seed: int = 0):
        self.tokenizer, self._seed = tokenizer, seed
        texts = ("".join(text) for count in range(length + 1) for text in itertools.product(signs, repeat=count))
        self._follow: dict[tuple[int, ...], dict[int, float]] = {}
        self.encodings = {text: tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts}
        for ids in self.encodings.values():
            for place, token in enumerate((*ids, tokenizer.eos_token_id)):
                self._follow.setdefault(ids[:place], {})[token] = 0.0
        for path, tokens in self._follow.items():
            address = hashlib.blake2b(repr((seed, path)).encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(address, "little")))
            for token, share in zip(sorted(tokens), generator.dirichlet([1.0] * len(tokens)), strict=True):
                tokens[token] = float(share)

    def law(self) -> Mapping[bytes, float]:
        """The probability of each text."""
        return {
            text.encode(): float(
                np.prod(
                    [
                        self._follow[ids[:place]][token]
                        for place, token in enumerate((*ids, self.tokenizer.eos_token_id))
                    ]
                )
            )
            for text, ids in self.encodings.items()
        }

    def model(self, name: str = "language") -> SmallLanguageModel:
        """The model, whose texts begin with a special token."""
        from decodery.testing import SmallLanguageModel
        from decodery.testing.scorers import TabularScorer

        size = len(self.tokenizer)

        def given(prefix: Sequence[int]) -> list[float]:
            row = [0.0] * size
            for token, share in self._follow.get(tuple(prefix[1:]), {self.tokenizer.eos_token_id: 1.0}).items():
                row[token] = share
            return row

        return SmallLanguageModel(
            TabularScorer(size, order=None, given=given, name=name), self.tokenizer, [self.tokenizer.eos_token_id]
        )


def two_letters(length: int = 7, seed: int = 0) -> ByteLanguage:
    """Texts over two letters, in tokens of up to three of them."""
    return ByteLanguage(LETTERS, length, PairTokenizer(LETTERS, PAIRS), seed)


def spaced(length: int = 6, seed: int = 0) -> ByteLanguage:
    """Texts over a, \u00e9 and the space, behind GPT-2's expression, which looks ahead."""
    return ByteLanguage("a\u00e9 ", length, PairTokenizer("", SPACED, byte_level=True), seed)
