"""Where a pre-tokenizer may split a text whose continuation is not known yet.

A pre-tokenizer with look-ahead, such as GPT-2's expression, splits a run of spaces before its last one where a letter follows,
and leaves it whole at the end of a text. So whether tokens are the beginning of what a tokenizer gives cannot be seen from
their own text alone: they are tried with several continuations. What a pre-tokenizer does depends on kinds of signs, so texts
are tried with one sign for all of a kind, and each outcome is kept.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

PROBES = ("", "x", "5", " ", "\n", "!", " x", "s", "t", "re", "ve", "m", "ll", "d", "'")
"""What may come behind a token, as far as it decides on splits before it."""
CONTRACTIONS = "'strevmld"
"""Signs that GPT-2's expression names; it is not written out where a tokenizer has it built in."""
LONGEST_CONTRACTION = 2
SYNTAX = "?+*|()[]^!:=<>.$-{},\\0123456789"
"""What stands in expressions to say something of signs; where they name letters, numbers and spaces only."""
RUN = 2
"""Equal signs that are tried in place of more of them."""

STAND_INS = {
    "Lu": "XQ", "Ll": "xq", "Lt": "ǅ", "Lm": "ʰ", "Lo": "ʘª", "Mn": "\u0301", "Mc": "\u0903", "Me": "\u0488",
    "Nd": "59", "Nl": "Ⅷ", "No": "²", "Pc": "_‿", "Pd": "–", "Ps": "⁅", "Pe": "⁆", "Pi": "«", "Pf": "»", "Po": "!¿",
    "Sm": "×±", "Sc": "€", "Sk": "´", "So": "©", "Zs": "\u3000", "Zl": "\u2028", "Zp": "\u2029",
}  # fmt: skip
"""Category of signs -> signs that stand for all of it, the first that the expressions do not name."""


class Splits:
    """A pre-tokenizer. pre_tokenizer: of the package `tokenizers`; state: its description, JSON."""

    def __init__(self, pre_tokenizer: Any, state: str):
        self._pieces: Callable[[str], list[tuple[str, tuple[int, int]]]] = pre_tokenizer.pre_tokenize_str
        described = json.loads(state)
        patterns = "".join(_patterns(described))
        plain = re.sub(r"\\[pP](\{[^}]*\}|.)|\\[a-zA-Z]", "", patterns)
        self._ranges = not plain.isascii() or re.search(r"\\[ux]", patterns) is not None
        """Whether signs beyond ASCII are told apart by more than their category."""
        properties = set(re.findall(r"\\[pP]\{\^?(\w+)\}", patterns))
        self._coarse = (
            _kinds(described) <= {"Sequence", "Split", "ByteLevel"}
            and properties <= {"L", "N"}
            and r"\w" not in patterns
        )
        """Whether letters, numbers and spaces are all that is told apart."""
        named = set(plain) - set(SYNTAX if self._coarse else "") | set(CONTRACTIONS)
        self._named = named | ({sign.swapcase() for sign in named} if "(?i" in patterns else set())
        self._counts = "{" in plain
        """Whether the length of a run may matter beyond its first signs."""
        self._stands: dict[str, str] = {}
        self.around = lru_cache(1 << 16)(self._around)

    def starts(self, text: str) -> list[int]:
        """Where the pieces of a text begin, in characters."""
        return [start for _, (start, _) in self._pieces(text)]

    def written(self, text: str) -> str:
        """A text with a stand-in for every sign, and long runs of letters cut short. Letters that expressions name, as parts of
        contractions, are themselves where an apostrophe may stand at most two signs before."""
        found: list[str] = []
        since = 0  # signs since an apostrophe, or since the beginning, before which there may be one
        for sign in text:
            letter = sign.isalpha()
            stand = self._stand(sign)
            if letter and since >= LONGEST_CONTRACTION and stand in self._named:
                stand = "Q" if sign.isupper() else "q"
            since = since + 1 if letter else 0 if sign == "'" else LONGEST_CONTRACTION
            runs = letter or (self._coarse and not (self._counts and sign.isnumeric()))
            if not (runs and found[-RUN:] == [stand] * RUN):
                found.append(stand)
        return "".join(found)

    def _around(self, before: tuple[str, ...], joins: tuple[bool, ...], text: str) -> tuple[bool, bool]:
        """Whether a text [stand-ins] may come after tokens behind a split, and whether it may go on with their last piece.

        before: of each token its text as stand-ins, the first beginning a piece. joins: of each but the first, whether it may
        stay a token of its own within a piece. A split must come before those that may not, and none within a token.
        """
        split = joined = False
        places, whole = [0], 0
        for part in before:
            whole += len(part)
            places.append(whole)
        ahead = "".join(before) + text
        allowed, forced = set(places), {places[k + 1] for k, join in enumerate(joins) if not join}
        # Look-ahead from before the text ends within it, where it has two signs.
        probes = PROBES if len(text) < 2 or text[-1].isspace() else PROBES[:2]
        for probe in probes:
            starts = self.starts(ahead + probe)
            here = {start for start in starts if start < len(ahead) or not text}
            if not here <= allowed | {len(ahead)} or not forced <= here:
                continue
            if whole in here:
                split = True
            else:
                joined = True
            if split and joined:
                break
        return split, joined

    def whole(self, before: tuple[str, ...], joins: tuple[bool, ...]) -> bool:
        """Whether tokens are what is made of their text where nothing follows; see `around`."""
        places, length = [0], 0
        for part in before:
            length += len(part)
            places.append(length)
        starts = set(self.starts("".join(before)))
        return starts <= set(places) and all(join or places[k + 1] in starts for k, join in enumerate(joins))

    def _stand(self, sign: str) -> str:
        if sign not in self._stands:
            kind = unicodedata.category(sign)
            if self._coarse and not (sign.isspace() or self._ranges):
                kind = "Ll" if kind[0] == "L" else "Nd" if kind[0] == "N" else "Po"
            plain = sign in self._named or kind not in STAND_INS or (sign.isspace() and sign.isascii())
            if plain or (self._ranges and not sign.isascii()):
                self._stands[sign] = sign
            else:
                self._stands[sign] = next((one for one in STAND_INS[kind] if one not in self._named), sign)
        return self._stands[sign]


def completions(partial: bytes) -> Iterable[str]:
    """Signs that begin with these bytes, which are the beginning of one: all of the last two bytes' range, else some of it."""
    lead = partial[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    missing = length - len(partial)
    steps = range(64) if missing <= 2 else range(0, 64, 8)
    tails: list[bytes] = [b""]
    for place in range(missing):
        chosen: Sequence[int] = steps if place == 0 else range(0, 64, 8) if missing > 1 else steps
        tails = [tail + bytes([0x80 + step]) for tail in tails for step in chosen]
    for tail in tails:
        try:
            yield (partial + tail).decode()
        except UnicodeDecodeError:
            continue


def _patterns(state: Any) -> list[str]:
    """The expressions and strings in the description of a pre-tokenizer."""
    if isinstance(state, dict):
        own = [
            value for key, value in state.items() if key in ("Regex", "String", "content") and isinstance(value, str)
        ]
        return own + [found for value in state.values() for found in _patterns(value)]
    return [found for value in state for found in _patterns(value)] if isinstance(state, list) else []


def _kinds(state: Any) -> set[str]:
    """The kinds of the steps in the description of a pre-tokenizer."""
    if isinstance(state, dict):
        return {state["type"]} | _kinds(state.get("pretokenizers", []))
    return {kind for one in state for kind in _kinds(one)}
