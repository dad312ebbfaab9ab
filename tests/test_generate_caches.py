"""decodery inside transformers' `generate`: scores, and caches that the caller hands in, keeps, or gets back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from test_generate_arguments import same, same_cache
from test_generate_state import PAD, _rows_cost_nothing, batch, ends, every_method, model_of, run, text  # noqa: F401
from tiny_models import make_model, random_ids
from torch import Tensor
from transformers import DynamicCache, StaticCache

from decodery.errors import BadSetting


@every_method
def test_scores_of_rows_that_are_over_are_given_too(method: str) -> None:
    extra = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "repetition_penalty": 1.4,
        "eos_token_id": ends(batch(), repetition_penalty=1.4),
    }
    seen = batch()["attention_mask"].bool()
    for cached in (True, False):
        ours, theirs = (run(name, batch(), use_cache=cached, **extra) for name in (method, "transformers"))
        assert (ours.sequences[0, -3:] == PAD).all()
        same(ours, theirs, seen=seen)


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_model_shows_is_cut_into_steps(cached: bool) -> None:
    extra = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    same(*(run(name, text(), use_cache=cached, **extra) for name in (None, "transformers")))
    longer = text(20)
    caches = [after(longer["input_ids"][:, :6]) for _ in range(2)]
    same(*(run(name, longer, cache=held, **extra) for name, held in zip((None, "transformers"), caches, strict=True)))


def test_the_scores_are_those_that_the_tokens_were_drawn_by() -> None:
    out = run("prompt-lookup", text(), do_sample=True, return_dict_in_generate=True, output_scores=True, top_k=3)
    for step, scores in enumerate(out.scores):
        assert scores[0].isfinite().sum() == 3
        assert scores[0, out.sequences[0, 8 + step]].isfinite()


@every_method
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_cache_goes_from_turn_to_turn(method: str, family: str) -> None:
    """Both loops on the same cache, in turns: what one leaves there the other goes on from."""
    own, other = DynamicCache(config=model_of(family).config), DynamicCache(config=model_of(family).config)
    inputs = text(20)
    for turn in range(3):
        ours = run(method, inputs, family, cache=own)
        theirs = run("transformers", inputs, family, cache=other)
        assert torch.equal(ours, theirs)
        same_cache(own, other)
        assert own.get_seq_length() == ours.shape[1] - 1
        if turn == 1:
            own, other = other, own
        inputs = {"input_ids": torch.cat([ours, text(5, turn)["input_ids"]], dim=1)}


def test_a_cache_may_keep_more_than_the_window_asks_for() -> None:
    """Made without a configuration, it keeps all rows of layers that look at the last ones alone."""
    own, other, inputs = DynamicCache(), DynamicCache(), text(20)
    for turn in range(2):
        ours = run(None, inputs, "gemma3", cache=own)
        assert torch.equal(ours, run("transformers", inputs, "gemma3", cache=other))
        inputs = {"input_ids": torch.cat([ours, text(5, turn)["input_ids"]], dim=1)}


@every_method
def test_a_cache_of_a_padded_batch_goes_on(method: str) -> None:
    own, other = DynamicCache(), DynamicCache()
    inputs, end = batch(), ends(batch())
    for _ in range(2):
        ours = run(method, inputs, cache=own, eos_token_id=end)
        theirs = run("transformers", inputs, cache=other, eos_token_id=end)
        assert torch.equal(ours, theirs)
        same_cache(own, other, batch()["attention_mask"].bool())
        more = torch.tensor([random_ids(3, row, PAD) for row in range(3)])
        ids = torch.cat([ours, more], dim=1)
        mask = torch.cat([batch()["attention_mask"], torch.ones(3, ids.shape[1] - 9, dtype=torch.long)], dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask}


def test_an_empty_cache_of_another_kind_is_filled() -> None:
    found = []
    for name in ("token-recycling", "transformers"):
        own = StaticCache(config=model_of().config, max_cache_len=40)
        run(name, text(), cache=own)
        found.append(own)
    assert found[0].get_seq_length() == found[1].get_seq_length() == 19
    torch.testing.assert_close(found[0].layers[3].keys, found[1].layers[3].keys, rtol=1e-4, atol=1e-4)


def soft() -> DynamicCache:
    held = DynamicCache()
    with torch.no_grad():
        model_of()(inputs_embeds=torch.randn(1, 4, 32), cache=held)
    return held


def after(ids: Tensor, model: Any = None, **arguments: Any) -> DynamicCache:
    held = DynamicCache()
    with torch.no_grad():
        (model or model_of())(ids, cache=held, **arguments)
    return held


def changed(place: int) -> Tensor:
    ids = text()["input_ids"][:, :6].clone()
    ids[0, place] = (ids[0, place] + 1) % 90
    return ids


@pytest.mark.parametrize(
    "made",
    [
        soft,
        lambda: after(changed(0)),
        lambda: after(changed(5)),
        lambda: after(text()["input_ids"][:, 1:6]),
        lambda: after(text()["input_ids"][:, :6], position_ids=torch.arange(6)[None] + 1),
        lambda: after(text()["input_ids"][:, :6], make_model("llama", seed=1)),
        lambda: after(text()["input_ids"][:, :6].repeat(2, 1)),
        lambda: after(text()["input_ids"][:, :6], make_model("llama", num_hidden_layers=3)),
    ],
    ids=["soft", "first token", "last token", "suffix", "positions", "another model", "rows", "layers"],
)
def test_a_cache_that_holds_something_else_is_refused(made: Any) -> None:
    held = made()
    count, keys = held.get_seq_length(), held.layers[0].keys.clone()
    with pytest.raises(BadSetting, match=r"past_key_values.*something else than the first"):
        run(None, text(), cache=held)
    assert held.get_seq_length() == count
    assert torch.equal(held.layers[0].keys, keys)


def test_a_cache_must_leave_something_to_read() -> None:
    for length in (8, 11):
        held = after(torch.tensor([random_ids(length, 2, PAD)]))
        with pytest.raises(BadSetting, match=f"holds {length} tokens and input_ids has 8"):
            run(None, text(), cache=held)


def test_caches_that_cannot_be_looked_into_are_refused() -> None:
    held = StaticCache(config=model_of().config, max_cache_len=40)
    run("transformers", text(), cache=held)
    longer = {"input_ids": torch.cat([text()["input_ids"], torch.ones(1, 20, dtype=torch.long)], dim=1)}
    with pytest.raises(BadSetting, match="StaticCache"):
        run(None, longer, cache=held)


def test_states_that_are_no_keys_cannot_be_looked_into() -> None:
    from decodery.integrations.generate_output import check_beginning

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    config = transformers.Lfm2Config(vocab_size=99, **shape, **layers)
    model, ids = transformers.Lfm2ForCausalLM(config).eval(), text()["input_ids"]
    held = DynamicCache(config=config)
    with torch.no_grad():
        model(ids[:, :6], cache=held)
    with pytest.raises(BadSetting, match="no keys and values"):
        check_beginning(model, ids, None, held, "cache")


def test_a_cache_without_the_text_it_holds_is_refused() -> None:
    """`generate` lets one give the new tokens alone, under a mask of all; what is to be drafted from then is not known."""
    held = after(text()["input_ids"])
    with pytest.raises(BadSetting, match="attention_mask covers 11 tokens and input_ids has 3"):
        run(None, text(3, 7), cache=held, attention_mask=torch.ones(1, 11, dtype=torch.long))


def test_a_cache_that_is_not_to_be_used_is_a_contradiction() -> None:
    with pytest.raises(BadSetting, match="use_cache=False contradicts"):
        run(None, text(), cache=DynamicCache(), use_cache=False)
