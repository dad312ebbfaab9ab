"""decodery inside transformers' `generate`: what `generate` prepared is honoured, and what is not for this loop refused."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import scipy.stats
import torch
from tiny_models import make_model, random_ids, reference_logits
from torch import Tensor

import decodery
from decodery.errors import BadParameter, BadPrompt, BadSetting, UnknownMethod

METHODS = ("autoregressive", "token-recycling", "prompt-lookup", "draft-model(layers=1)")
EXACT = METHODS[:3]
"""These draw the same token as plain decoding at the same address; the draft model only has the same law."""
PAD = 98
every_method = pytest.mark.parametrize("method", METHODS)


@cache
def _model(family: str) -> Any:
    model = make_model(family)
    model.generation_config.pad_token_id = PAD
    return model


def model_of(family: str = "llama") -> Any:
    return _model(family)


def prompt_of(length: int, seed: int = 0) -> Tensor:
    return torch.tensor([random_ids(length, seed, PAD)])


def padded_batch() -> tuple[Tensor, Tensor]:
    rows = [random_ids(length, length, PAD) for length in (9, 4, 1)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def both(method: str, ids: Tensor, family: str = "llama", **arguments: Any) -> tuple[Tensor, Tensor]:
    """What `generate` gives with our loop, and without."""
    arguments = {"max_new_tokens": 16, "do_sample": False, **arguments}
    loop = decodery.transformers_generate(method)
    ours = model_of(family).generate(ids, custom_generate=loop, **arguments)
    return ours, model_of(family).generate(ids, **arguments)


@every_method
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_greedy_is_that_of_generate(method: str, family: str) -> None:
    ours, theirs = both(method, prompt_of(11, 1), family, max_new_tokens=24)
    assert ours.shape == (1, 35)
    assert torch.equal(ours, theirs)


@every_method
@pytest.mark.parametrize(
    "arguments",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [7, 9]]},
        {"suppress_tokens": list(range(50))},
        {"forced_eos_token_id": 5},
        {"max_length": 20, "max_new_tokens": None},
    ],
    ids=str,
)
def test_processors_of_generate_shape_the_law(method: str, arguments: dict[str, Any]) -> None:
    ours, theirs = both(method, prompt_of(8, 2), **arguments)
    assert torch.equal(ours, theirs)


def test_the_processors_matter_here() -> None:
    plain = both("autoregressive", prompt_of(8, 2))[1]
    assert not torch.equal(both("autoregressive", prompt_of(8, 2), repetition_penalty=1.3)[1], plain)
    assert not torch.equal(both("autoregressive", prompt_of(8, 2), no_repeat_ngram_size=2)[1], plain)


def _end_in(ids: Tensor, place: int) -> int:
    """A token that greedy decoding puts out for the first time at some place."""
    out = both("autoregressive", ids)[1][0, ids.shape[1] :].tolist()
    return next(token for i, token in enumerate(out) if i >= place and token not in out[:i])


@every_method
def test_end_tokens_end(method: str) -> None:
    ids = prompt_of(7, 3)
    end = _end_in(ids, 4)
    for ends in (end, [PAD, end]):
        ours, theirs = both(method, ids, eos_token_id=ends)
        assert torch.equal(ours, theirs)
        assert ours.shape[1] < 7 + 16
        assert int(ours[0, -1]) == end


@every_method
def test_least_lengths_are_kept(method: str) -> None:
    ids = prompt_of(7, 3)
    end = _end_in(ids, 1)
    for arguments in ({"min_new_tokens": 12}, {"min_length": 15}):
        ours, theirs = both(method, ids, eos_token_id=end, **arguments)
        assert torch.equal(ours, theirs)
        assert ours.shape[1] > 14


@every_method
def test_stopping_criteria_end(method: str) -> None:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Length(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12)

    ours, theirs = both(method, prompt_of(7, 4), stopping_criteria=StoppingCriteriaList([Length()]))
    assert ours.shape == (1, 12)
    assert torch.equal(ours, theirs)


@every_method
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 6},
        {"min_length": 13},
        {"max_length": 15, "max_new_tokens": None},
    ],
    ids=str,
)
def test_batches_padded_on_the_left(method: str, arguments: dict[str, Any]) -> None:
    """Also what counts tokens or looks at all of them: padding counts in `generate`, and so it does here."""
    ids, mask = padded_batch()
    end = _end_in(ids[:1], 2)
    ours, theirs = both(method, ids, attention_mask=mask, eos_token_id=end, **arguments)
    assert torch.equal(ours, theirs)


@every_method
def test_padding_is_not_penalised_as_a_repetition(method: str) -> None:
    """`generate` tells its processors how much padding each row has; here the pad token is one that would come next."""
    row = torch.tensor([random_ids(4, 21, PAD)])
    likely = int(reference_logits(model_of(), row[0])[-1].argmax())
    ids = torch.cat([torch.tensor([random_ids(9, 22, PAD)]), torch.cat([torch.full((1, 5), likely), row], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    ours, theirs = both(method, ids, attention_mask=mask, repetition_penalty=1.8, pad_token_id=likely)
    assert torch.equal(ours, theirs)
    assert int(ours[1, 9]) == likely


def test_rows_that_end_early_are_filled_with_the_pad_token() -> None:
    ids = torch.cat([prompt_of(5, 5), prompt_of(5, 6)])
    end = _end_in(ids[:1], 3)
    ours, theirs = both("autoregressive", ids, eos_token_id=end)
    assert torch.equal(ours, theirs)
    assert PAD in ours[0].tolist()


# Sampling


@every_method
def test_the_seed_of_torch_fixes_sampling(method: str) -> None:
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        loop = decodery.transformers_generate(method)
        out = model_of().generate(prompt_of(6, 7), custom_generate=loop, do_sample=True, max_new_tokens=12, top_k=0)
        return out[0].tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_exact_methods_draw_the_same_tokens() -> None:
    found = []
    for method in EXACT:
        torch.manual_seed(3)
        loop = decodery.transformers_generate(method)
        out = model_of().generate(
            prompt_of(6, 8), custom_generate=loop, do_sample=True, max_new_tokens=12, temperature=0.8
        )
        found.append(out.tolist())
    assert found[0] == found[1] == found[2]


@every_method
def test_samples_follow_the_law_that_generate_prepared(method: str) -> None:
    """First tokens of 600 samples: within the top 4, and by a chi-square test of the law of temperature 2 among these.

    False alarm: 1e-4 for each method.
    """
    ids = prompt_of(6, 9)
    torch.manual_seed(4)
    loop = decodery.transformers_generate(method)
    out = model_of().generate(
        ids,
        custom_generate=loop,
        do_sample=True,
        temperature=2.0,
        top_k=4,
        max_new_tokens=2,
        num_return_sequences=600,
    )
    assert out.shape == (600, 8)
    counts = Counter(out[:, 6].tolist())
    row = reference_logits(model_of(), ids[0])[-1] / 2.0
    best = row.topk(4)
    law = best.values.double().softmax(0)
    assert set(counts) <= set(best.indices.tolist())
    observed = [counts[token] for token in best.indices.tolist()]
    assert scipy.stats.chisquare(observed, (law * 600).tolist()).pvalue > 1e-4


@every_method
def test_several_sequences_per_prompt(method: str) -> None:
    ids, mask = padded_batch()
    torch.manual_seed(5)
    loop = decodery.transformers_generate(method)
    out = model_of().generate(
        ids, attention_mask=mask, custom_generate=loop, do_sample=True, max_new_tokens=8, num_return_sequences=3
    )
    assert out.shape == (9, 9 + 8)
    assert torch.equal(out[:, :9], ids.repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in out[:3].tolist()}) == 3


# Output


@every_method
def test_output_as_a_dictionary(method: str) -> None:
    ours, theirs = both(method, prompt_of(5, 10), return_dict_in_generate=True)
    assert torch.equal(ours.sequences, theirs.sequences)  # type: ignore[attr-defined]
    assert type(ours).__name__ == type(theirs).__name__


def test_the_model_is_left_as_it_was() -> None:
    model, ids = model_of(), prompt_of(9, 11)
    before = model.generate(ids, max_new_tokens=5, do_sample=False)
    model.generate(ids, max_new_tokens=5, custom_generate=decodery.transformers_generate(), do_sample=False)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), before)


def test_one_loop_serves_several_models() -> None:
    loop = decodery.transformers_generate("token-recycling")
    for family in ("llama", "gpt2", "llama"):
        ids = prompt_of(5, 12)
        arguments: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        ours = model_of(family).generate(ids, custom_generate=loop, **arguments)
        assert torch.equal(ours, model_of(family).generate(ids, **arguments))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "num_beams=1"),
    ],
    ids=lambda v: str(v),
)
def test_what_this_loop_does_not_do(arguments: dict[str, Any], message: str) -> None:
    loop = decodery.transformers_generate("autoregressive")
    with pytest.raises(BadSetting, match=message):
        model_of().generate(prompt_of(4), custom_generate=loop, max_new_tokens=4, **arguments)


def test_processors_with_a_state_of_their_own_are_refused() -> None:
    loop = decodery.transformers_generate("autoregressive")
    with pytest.raises(BadSetting, match="guidance_scale"):
        model_of().generate(prompt_of(4), custom_generate=loop, max_new_tokens=4, guidance_scale=2.0)


def test_prompts_must_be_ids_padded_on_the_left() -> None:
    loop = decodery.transformers_generate("autoregressive")
    ids, mask = padded_batch()
    for wrong in (mask.flip(1), torch.zeros_like(mask)):
        with pytest.raises(BadPrompt, match="padded on the left"):
            model_of().generate(ids, attention_mask=wrong, custom_generate=loop, max_new_tokens=4)
    with pytest.raises(BadPrompt, match="input_ids"):
        model_of().generate(inputs_embeds=torch.zeros(1, 3, 32), custom_generate=loop, max_new_tokens=4)


def test_unknown_methods_and_parameters_are_refused_at_once() -> None:
    with pytest.raises(UnknownMethod):
        decodery.transformers_generate("no-such-method")
    with pytest.raises(BadParameter):
        decodery.transformers_generate("prompt-lookup(length=0)")
