"""A model that fills in a gap."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from decodery.evaluation.byte_languages import PairTokenizer
from decodery.testing import SmallLanguageModel
from decodery.testing.scorers import TabularScorer

NAMES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


def filling() -> SmallLanguageModel:
    """A model that fills in ab, and then ends, in tokens of a, b and ab."""
    tokenizer = PairTokenizer("ab", [("a", "b")])
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken(name, special=True) for name in NAMES])
    words = tokenizer.get_vocab()
    tokenizer.all_special_ids += [words[name] for name in NAMES]
    size = len(tokenizer)

    def given(prefix: Any) -> list[float]:
        row = [0.0] * size
        row[words["ab"] if prefix[-1] == words["<fim_middle>"] else tokenizer.eos_token_id] = 1.0
        return row

    scorer = TabularScorer(size, order=None, given=given)
    return SmallLanguageModel(scorer, tokenizer, [tokenizer.eos_token_id])
