"""Insertion language models as folders: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import decodery
from decodery.errors import ModelNotReadable
from decodery.models.insertions import ENTRY, HEAD_FILE, Insertions
from decodery.models.kinds import Kind
from decodery.testing.inserters import split_rows
from decodery.training.insertion_language_models import (
    INSERTIONS,
    PlanningData,
    PlanningSizes,
    new_network,
    write_model,
)

DATA = PlanningData(("arms-of-3",))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stars")
    write_model(new_network(PlanningSizes(width=16, layers=1, heads=2), len(DATA.words)), INSERTIONS, DATA, folder)
    return folder


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    return {**config, ENTRY: {**config[ENTRY], **changes}}


def test_the_description_is_read(written):
    model = Insertions.of(_config(written), written)
    words = DATA.words
    assert model is not None
    assert (model.class_token_id, model.begin_token_id, model.hole_token_id) == (
        words["<class>"], words["<begin>"], words["<hole>"],
    )  # fmt: skip
    assert model.never_inserted == tuple(range(6))
    assert (model.begin_behind_prompt, model.stop_threshold) == (True, 0.5)
    # Class, prompt, begin, and an answer twice as long as the longest.
    assert model.max_length == 3 + 14 + 8
    logits, stop = model.head(torch.randn(5, 16))
    assert (logits.shape, stop.shape, logits.dtype) == ((5, len(words)), (2,), torch.float32)


def test_how_complete_a_text_is(written):
    model = Insertions.of(_config(written), written)
    assert model is not None
    assert model.completeness(torch.tensor([3.0, 3.0])) == pytest.approx(0.5)
    assert model.completeness(torch.tensor([5.0, 3.0])) == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()))


def test_another_model_has_no_description(written):
    assert Insertions.of({"vocab_size": 4}, written) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_token_id": None}, "cannot be read"),
        ({"hole_token_id": 99}, "outside 0..25"),
        ({"reserved_token_ids": [-1]}, "outside 0..25"),
        ({"hole_token_id": 0}, "one twice"),
        ({"stop_threshold": 0.0}, "stop_threshold above 0"),
        ({"stop_threshold": 1.5}, "at most 1"),
        ({"max_length": 2}, "max_length from 3 on"),
    ],
)
def test_a_malformed_description_is_refused(written, changes, says):
    with pytest.raises(ModelNotReadable, match=says):
        Insertions.of(_config(written, **changes), written)


def test_a_head_that_is_missing_or_of_another_shape_is_refused(written, tmp_path):
    with pytest.raises(ModelNotReadable, match="lacks its head"):
        Insertions.of(_config(written), tmp_path)
    (tmp_path / HEAD_FILE).write_bytes((written / HEAD_FILE).read_bytes())
    with pytest.raises(ModelNotReadable, match="is no head of this model"):
        Insertions.of({**_config(written), "hidden_size": 32}, tmp_path)


def test_defaults_of_the_description(written):
    config = _config(written)
    for name in ("stop_threshold", "max_length", "begin_behind_prompt", "reserved_token_ids"):
        del config[ENTRY][name]
    model = Insertions.of(config, written)
    assert model is not None
    assert (model.stop_threshold, model.max_length, model.begin_behind_prompt, model.reserved) == (0.9, 2048, False, ())


def test_a_folder_loads_as_a_model_of_its_kind(written):
    lm = decodery.load(written)
    assert lm.network.kinds is Kind.INSERTIONS
    assert lm.diffusion is None
    reply = lm.generate("3 5 3 7 5 9 7 11 3 9", max_new_tokens=4, seed=0)
    assert reply.method == "insertion-language-models"
    assert lm.fill_prompt("3 5 <begin> 3", "5") == [*lm.tokenize("3 5 <begin> 3 <hole> 5")]


def test_a_model_that_is_wrapped_is_told_its_head(written):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(written), AutoTokenizer.from_pretrained(written)
    described = Insertions.of(_config(written), written)
    lm = decodery.wrap(model, tokenizer, insertions=described)
    prompt = "3 5 3 7 5 9 7 11 3 9"
    own = decodery.load(written, dtype="float32").generate(prompt, max_new_tokens=4, seed=0)
    assert lm.generate(prompt, max_new_tokens=4, seed=0).token_ids == own.token_ids
    assert Insertions(0, 1, 2, (), False, 0.5, 8, split_rows).never_inserted == (0, 1, 2)
