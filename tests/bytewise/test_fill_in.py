"""Prompts to fill in: their layouts, and a prefix that ends inside a word."""

from __future__ import annotations

from typing import Any

import pytest
from filling_model import NAMES, filling

from decodery.errors import BadPrompt, BadSetting, MethodUnavailable
from decodery.evaluation.byte_languages import PairTokenizer
from decodery.testing import SmallLanguageModel
from decodery.testing.scorers import TabularScorer


def test_layouts() -> None:
    lm = filling()
    words = lm.tokenizer.get_vocab()
    before, behind, gap = (words[name] for name in NAMES)
    last = lm.fill_prompt("a", "bb")
    assert last == [*lm.tokenizer.encode(""), before, behind, words["b"], words["b"], gap, words["a"]]
    first = lm.fill_prompt("a", "bb", "prefix-suffix-middle")
    assert first == [*lm.tokenizer.encode(""), before, words["a"], behind, words["b"], words["b"], gap]


def test_a_prefix_that_ends_inside_a_word_goes_on() -> None:
    """The token ab covers the prefix a; after the token a alone, the text would be over."""
    lm = filling()
    prompt = lm.fill_prompt("a", "b")
    plain: Any = lm.generate(prompt, method="autoregressive", temperature=0.0, max_new_tokens=4)
    assert plain.text == ""
    for until in ("boundary", "end"):
        reply: Any = lm.generate(
            prompt, method=f"byte-level-probabilities(until={until})", temperature=0.0, max_new_tokens=4
        )
        assert reply.text == "b"


def test_what_cannot_be_filled_in() -> None:
    lm = filling()
    with pytest.raises(BadSetting, match="layout must be"):
        lm.fill_prompt("a", "b", "middle")
    with pytest.raises(BadPrompt, match="nothing around the gap"):
        lm.fill_prompt("", "")
    tokenizer = PairTokenizer("ab", [])
    plain = SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer)
    with pytest.raises(MethodUnavailable, match="not trained to fill in"):
        plain.fill_prompt("a", "b")
