"""Masked-diffusion checkpoints: ours, LLaDA's and Dream's, on every path that can run them."""

from __future__ import annotations

import json

import pytest
import torch
from diffusion_checkpoints import END, MASK, PAD, reference, write_dream, write_llada, write_own

import decodery
from decodery.errors import BadSetting, ModelNotReadable, Refused
from decodery.models import catalogue, store
from decodery.models.forward import Attend, Forward
from decodery.models.masked_diffusion import MaskedDiffusion

TOKENS = [5, 9, 4, 3, 11, 0, 7, 0, 0, 20]
WRITERS = {"own": write_own, "llada": write_llada, "dream": write_dream}


def _logits(lm, tokens, **more):
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, attend=Attend.FULL, **more)])
    return scores.logits


@pytest.mark.parametrize("fast", ["off", "fused"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_computes_what_its_formulas_say(kind, fast, tmp_path):
    folder = WRITERS[kind](tmp_path / kind)
    lm = decodery.load(folder, dtype="float32", fast=fast)
    torch.testing.assert_close(_logits(lm, TOKENS), reference(folder, TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", ["off", "fused"])
def test_the_last_token_changes_the_first_position(fast, tmp_path):
    """A causal mask left on is silently wrong."""
    lm = decodery.load(write_llada(tmp_path / "llada"), dtype="float32", fast=fast)
    other = [*TOKENS[:-1], 13]
    assert (_logits(lm, TOKENS)[0] - _logits(lm, other)[0]).abs().max() > 0.05
    causal = [lm.network.run([Forward(lm.network.new_sequence(), t)])[0].logits[0] for t in (TOKENS, other)]
    torch.testing.assert_close(causal[0], causal[1])  # the control: a causal forward does not see it


@pytest.mark.parametrize("fast", ["off", "fused"])
def test_rows_rewritten_in_place_see_what_stands_in_the_cache(fast, tmp_path):
    """The same tokens again in their own slots give the same scores, whatever range of them is computed."""
    lm = decodery.load(write_own(tmp_path / "own"), dtype="float32", fast=fast)
    whole = range(len(TOKENS))
    sequence = lm.network.new_sequence()
    [first] = lm.network.run([Forward(sequence, TOKENS, attend=Attend.FULL, slots=whole)])
    [part] = lm.network.run([Forward(sequence, TOKENS[4:7], attend=Attend.FULL, slots=range(4, 7))])
    torch.testing.assert_close(part.logits, first.logits[4:7], rtol=1e-4, atol=1e-4)
    changed = [*TOKENS[:5], 17, *TOKENS[6:]]
    lm.network.run([Forward(sequence, changed, attend=Attend.FULL, slots=whole)])
    assert sequence.tokens == changed
    [last] = lm.network.run([Forward(sequence, changed[9:], attend=Attend.FULL, slots=[9])])
    torch.testing.assert_close(last.logits[0], reference(tmp_path / "own", changed)[9], rtol=1e-4, atol=1e-4)


def test_what_a_description_says(tmp_path):
    own = decodery.load(write_own(tmp_path / "own"))
    assert own.diffusion == MaskedDiffusion(MASK, False, (END,), (PAD,), 8)
    assert own.diffusion.reserved == (MASK, PAD)
    llada = decodery.load(write_llada(tmp_path / "llada")).diffusion
    assert (llada.mask_token_id, llada.shift, llada.end_token_ids, llada.reserved) == (3, False, (END,), (3,))
    dream = decodery.load(write_dream(tmp_path / "dream")).diffusion
    # Dream's pad is its end token, which a law may give.
    assert (dream.mask_token_id, dream.shift, dream.end_token_ids, dream.reserved) == (3, True, (END,), (3,))


def test_published_defaults():
    """The identifiers of LLaDA-8B and Dream-7B, where a configuration leaves them out."""
    assert MaskedDiffusion.of({"model_type": "llada"}) == MaskedDiffusion(126336, False, (126081,))
    assert MaskedDiffusion.of({"model_type": "Dream"}) == MaskedDiffusion(151666, True, (151643,))
    assert MaskedDiffusion.of({"model_type": "llama"}) is None


def test_damaged_checkpoints_are_refused_in_one_sentence(tmp_path):
    folder = write_own(tmp_path / "own", mask_token_id=400)
    with pytest.raises(ModelNotReadable, match="masked_diffusion"):
        decodery.load(folder)
    folder = write_llada(tmp_path / "llada")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layers": 1}))
    with pytest.raises(
        ModelNotReadable,
        match=r"does not fit its config.json: it holds model.layers.1.input_layernorm.weight and 8 more",
    ):
        decodery.load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "block_type": "sequential"}))
    with pytest.raises(ModelNotReadable, match="block_type"):
        decodery.load(folder)


def test_the_native_path_is_left_out_unless_asked_for(tmp_path):
    lm = decodery.load(write_own(tmp_path / "own"), dtype="bfloat16")
    assert lm.network.path in ("fused", "eager")
    with pytest.raises(BadSetting, match="native"):
        decodery.load(tmp_path / "own", dtype="float32", fast="native")


def test_models_shipped_with_the_package_load_by_name(tmp_path, monkeypatch):
    folder = write_own(tmp_path / "diffusion-tiny")
    (folder / "card.json").write_text(json.dumps({"title": "Tiny", "licence": "Apache-2.0", "parameters": "20K"}))
    monkeypatch.setattr(catalogue, "ARTIFACTS", tmp_path)
    lm = decodery.load("diffusion-tiny", dtype="float32")
    assert lm.diffusion is not None
    assert lm.name == "diffusion-tiny"
    [entry] = [model for model in store.known_models() if model.name == "diffusion-tiny"]
    assert entry.installed
    assert entry.licence == "Apache-2.0"
    reply = lm.generate("a b :", seed=1)
    assert reply.method == "masked-diffusion"
    assert not {MASK, PAD} & set(reply.token_ids)


def test_wrong_pairings_are_refused_before_work(tmp_path):
    lm = decodery.load(write_own(tmp_path / "own"), dtype="float32")
    for method in ("autoregressive", "prompt-lookup"):
        with pytest.raises(Refused, match="masked-diffusion model"):
            lm.generate("a b", method)
    from decodery.testing import toy_language_model

    with pytest.raises(Refused, match="causal"):
        toy_language_model().generate("hello", "masked-diffusion")
