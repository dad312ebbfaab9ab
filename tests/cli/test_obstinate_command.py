"""decodery audit obstinate: tables, JSON, refusals."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import decodery
from decodery.language_model import LanguageModel

TEXT = "Ben saw a brave tiger near the river"
QUICK = ("--after", " So", "--labels", "lemon,glass,silver", "--steps", "4", "--every", "2", "--candidates", "8")


@cache
def worded(seed: int) -> LanguageModel:
    """A random model with a token for each of some words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = "lemon glass silver brave tiger river horse candle winter mirror pepper castle green island bottle shadow"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f" {words}"] * 3, trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0.0, 0.3)
    return decodery.wrap(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), name=f"m{seed}", fast="off")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decodery.loading.load", lambda name, **options: worded(0))
    monkeypatch.setattr(worded(0), "companion", lambda name: worded({"gemma3-270m": 1, "third": 2, "itself": 0}[name]))


def test_a_text_is_searched(command: Any, models: None) -> None:
    result = command("audit", "obstinate", TEXT, *QUICK, "--transfer", "third")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0].split() == ["word,", "text", "instead,", "prediction", "similarity", "read"]
    for said in ("GradObstinate", "random, one draw", "random, as many read", "antonyms", "on m2", "m1 judges"):
        assert said in result.out
    assert "reconstructions" in " ".join(result.out.split())


def test_everything_given_acts(command: Any, models: None, tmp_path: Path) -> None:
    def told(*options: str, text: str = TEXT) -> Any:
        result = command("audit", "obstinate", text, *QUICK, "--json", *options)
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out)

    found = told()
    assert told() == found
    assert (found["model"], found["judge"]) == ("m0", "m1")
    assert found["texts"][0]["predicted"] in (" lemon", " glass", " silver")
    assert told("--judge", "third")["judge"] == "m2"
    assert len(told("--words", "2")["texts"][0]["checked"]) == 2
    assert "the same words on m2" in told("--transfer", "third")["rates"]
    assert told("--seed", "1") != found
    assert told("--similarity", "-0.05") != found
    other = told("--before", "castle ")
    assert other["texts"][0]["divergence"] != found["texts"][0]["divergence"]
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXT}\n\nBen saw a green castle\n")
    listed = json.loads(command("audit", "obstinate", "--file", str(file), *QUICK, "--json").out)
    assert [row["text"] for row in listed["texts"]] == [TEXT, "Ben saw a green castle"]
    assert listed["texts"][0] == found["texts"][0]


def test_how_it_searches_is_handed_on(command: Any, models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search does with each is tested where it is."""
    from decodery.audit import obstinate_report

    seen: list[Any] = []
    audit = obstinate_report.audit_obstinate

    def watched(*given: Any) -> Any:
        seen.append(given)
        return audit(*given)

    monkeypatch.setattr(obstinate_report, "audit_obstinate", watched)
    options = {
        "steps": 3,
        "rate": 0.7,
        "every": 3,
        "candidates": 4,
        "penalty": 2.0,
        "margin": 0.1,
        "restarts": 2,
        "seed": 5,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    result = command("audit", "obstinate", TEXT, "--continued", "2", *given)
    assert (result.code, result.err) == (0, "")
    _, _, texts, question, settings, *_ = seen[0]
    assert texts == [TEXT]
    assert (question.continued, question.labels) == (2, ())
    assert {name: getattr(settings, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a text, or --file"),
        ([TEXT, "--file", "x"], "give a text, or --file"),
        ([TEXT, "--labels", "lemon"], "no choice"),
        ([TEXT, "--labels", "lemon,lemon"], "first tokens"),
        ([TEXT, "--steps", "0"], "steps must be at least 1"),
        ([TEXT, "--judge", "itself"], "name another model"),
        (["It was", "--judge", "third"], "no content word"),
        ([TEXT, "--words", "9"], "words to replace"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command: Any, models: None, options: list[str], message: str) -> None:
    result = command("audit", "obstinate", *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
