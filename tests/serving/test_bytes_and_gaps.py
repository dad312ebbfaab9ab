"""Ensembles in bytes, texts with a gap, and canvases under constraints, over HTTP."""

from __future__ import annotations

import re
from typing import Any

import openai
import pytest
from filling_model import filling
from serving_models import Running, serving

from decodery.evaluation.byte_languages import PairTokenizer
from decodery.testing import SmallLanguageModel
from decodery.testing.scorers import TabularScorer


def _words(seed: int, *pairs: tuple[str, str]) -> SmallLanguageModel:
    """A small random model in tokens of a, b and some pairs."""
    tokenizer = PairTokenizer("ab", list(pairs))
    return SmallLanguageModel(TabularScorer(len(tokenizer), seed=seed), tokenizer, [tokenizer.eos_token_id])


def test_an_ensemble_in_bytes() -> None:
    """Over HTTP comes what the library gives; the other model, with another tokenizer, has its part in it."""
    one, other = _words(1, ("a", "b")), _words(2, ("b", "a"), ("b", "b"))
    one.companions = {"other": other}
    models = {"one": one, "other": other}
    with serving(lambda name, **options: models[name], models=("one",), companions=("other",)) as server:
        client = server.client()
        texts = {}
        for method in ("byte-level-probabilities(models=other)", "byte-level-probabilities"):
            asked: Any = {"max_tokens": 12, "temperature": 1.0, "seed": 4}
            reply = client.completions.create(model="one", prompt="ab", extra_body={"method": method}, **asked)
            expected = one.generate("ab", method=method, max_new_tokens=12, temperature=1.0, seed=4)
            assert reply.choices[0].text == expected.text
            texts[method] = reply.choices[0].text
        assert len({*texts.values()}) == 2
        with pytest.raises(openai.BadRequestError, match="stranger"):
            client.completions.create(
                model="one",
                prompt="ab",
                extra_body={"method": "byte-level-probabilities(models=stranger)"},
            )


def test_a_suffix_is_filled_up_to() -> None:
    lm = filling()
    with serving(lambda name, **options: lm, models=("gap",)) as server:
        create: Any = server.client().completions.create
        asked: Any = {"model": "gap", "prompt": "a", "max_tokens": 4, "temperature": 0}
        reply = create(**asked, suffix="b", extra_body={"return_token_ids": True})
        expected = lm.fill_prompt("a", "b", "prefix-suffix-middle")
        assert reply.choices[0].prompt_token_ids == expected
        assert reply.choices[0].text == "ab"
        streamed = "".join(chunk.choices[0].text for chunk in create(**asked, suffix="b", stream=True) if chunk.choices)
        assert streamed == "ab"
        assert create(**asked, suffix="").choices[0].text == create(**asked).choices[0].text == ""
        for more, field, said in (
            ({"prompt": [1, 2]}, "suffix", "not with token ids"),
            ({"echo": True}, "echo", "does not go with suffix"),
        ):
            with pytest.raises(openai.BadRequestError, match=said) as refused:
                create(**{**asked, **more}, suffix="b")
            assert refused.value.param == field


def test_a_model_without_marks_takes_no_suffix(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="not trained to fill in") as refused:
        server.client().completions.create(model="toy", prompt="a", suffix="b")
    assert refused.value.param == "suffix"


def test_a_canvas_keeps_to_a_constraint(server: Running) -> None:
    create: Any = server.client().completions.create
    asked: Any = {
        "model": "diffusion-stories",
        "prompt": "Once upon a time",
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 3,
    }
    pattern = "[A-Z][a-z]+ (was|had) [a-z ]+"
    method = "masked-diffusion(tokens_per_step=3)"
    for stream in (False, True):
        reply = create(
            **asked, stream=stream, extra_body={"method": method, "structured_outputs": {"regex": pattern + r"\."}}
        )
        chunks = reply if stream else [reply]
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        assert re.fullmatch(pattern + r"\.", text), text
    with pytest.raises(openai.BadRequestError, match="format 'ipv4'") as refused:
        create(
            **asked, extra_body={"method": method, "structured_outputs": {"json": {"type": "string", "format": "ipv4"}}}
        )
    assert refused.value.param == "structured_outputs"
