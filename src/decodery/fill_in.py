"""Prompts for models that were trained to fill in the middle of a text."""

from __future__ import annotations

from typing import Protocol

from decodery.engine.host import Host
from decodery.engine.vocabularies import Tokens
from decodery.errors import BadPrompt, BadSetting, MethodUnavailable

MARKS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""How models write what stands before a text, before what follows the gap, and before the gap."""
SUFFIX_FIRST, PREFIX_FIRST = "suffix-prefix-middle", "prefix-suffix-middle"


class FillIn(Host, Protocol):
    """A language model, as far as a prompt to fill in needs it."""

    name: str


def fill_prompt(lm: FillIn, prefix: str, suffix: str, layout: str) -> list[int]:
    """See `LanguageModel.fill_prompt`."""
    if layout not in (SUFFIX_FIRST, PREFIX_FIRST):
        raise BadSetting(f"layout must be {SUFFIX_FIRST} or {PREFIX_FIRST}, not {layout!r}.")
    if not prefix and not suffix:
        raise BadPrompt("there is nothing around the gap; give a prefix or a suffix.")
    first, second = lm.encode(prefix) if prefix else [], lm.encode(suffix) if suffix else []
    if lm.network.insertions is not None:  # it fills any gap, and needs no marks
        return [*first, lm.network.insertions.hole_token_id, *second]
    tokens = Tokens(lm)
    written = {sign: token for token, sign in tokens.written().items()}
    marks = next((names for names in MARKS if all(name in written for name in names)), None)
    if marks is None:
        raise MethodUnavailable(
            f"{lm.name} was not trained to fill in: its tokenizer has none of the marks for it, such as {MARKS[0][0]}."
        )
    before, behind, gap = (written[name] for name in marks)
    if layout == PREFIX_FIRST:
        return [*tokens.begin(), before, *first, behind, *second, gap]
    return [*tokens.begin(), before, behind, *second, gap, *first]
