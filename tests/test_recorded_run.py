"""Recorded runs: written and read field by field, replayed with the noise that they met, refused where they cannot be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from decodery.engine.registry import method as as_method
from decodery.errors import BadInput, BadParameter, BadSetting, Refused
from decodery.language_model import LanguageModel
from decodery.recorded_run import FORMAT, RecordedRun, check_recordable
from decodery.replies import Reply
from decodery.testing import LetterTokenizer, SmallLanguageModel, TabularScorer, scripted_language_model

PROMPT = [0, 6, 3]
SETTINGS: dict[str, Any] = {
    "temperature": 0.8, "top_p": 0.95, "logit_bias": {3: -2.0, 7: -float("inf")}, "seed": 5, "max_tokens": 12,
    "chance": "structural", "stop_token_ids": (9,), "ignore_eos": True,
}  # fmt: skip


def model(seed: int = 3) -> LanguageModel:
    return scripted_language_model(TabularScorer(10, order=2, seed=seed))


def recorded(lm: LanguageModel, **more: Any) -> tuple[Reply, RecordedRun]:
    settings = {**SETTINGS, **more}
    reply = lm.generate(PROMPT, "autoregressive", **settings)
    return reply, RecordedRun.of(lm, reply, settings)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    recorded(model())[1].write(path)
    return path


def changed(file: Path, /, **fields: Any) -> Path:
    told = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lm = model()
    reply, run = recorded(lm)
    run.write(tmp_path / "run.json")
    again = RecordedRun.read(tmp_path / "run.json")
    assert again == run
    assert again.tokens == tuple(reply.token_ids)
    assert again.prompt == tuple(PROMPT)
    assert again.settings == {
        "temperature": 0.8, "top_p": 0.95, "logit_bias": {"3": -2.0, "7": -float("inf")}, "seed": 5, "max_new_tokens": 12,
        "chance": "structural", "stop_token_ids": [9], "ignore_eos": True,
    }  # fmt: skip
    assert (tmp_path / "run.json").stat().st_size < 1500
    assert again.check(lm).logit_bias == {3: -2.0, 7: -float("inf")}


def test_without_a_change_the_run_itself_comes() -> None:
    lm = model()
    for noise in ("token", "rank", "number"):
        for seed in range(4):
            reply, run = recorded(lm, seed=seed, chance=f"structural(noise={noise})")
            assert run.replay(lm).token_ids == reply.token_ids
            place = len(run.tokens) - 1
            assert run.replay(lm, f"{place}:{run.tokens[place]}").token_ids == reply.token_ids
    reply, run = recorded(lm)
    assert run.replay(lm, noise="posterior").token_ids == reply.token_ids


def test_a_run_of_any_method_that_gives_plain_tokens_is_recorded() -> None:
    lm = model()
    reply, run = recorded(lm)
    for method in ("prompt-lookup", "cascade", "counterfactual-generation"):
        other = lm.generate(PROMPT, method, **SETTINGS)
        assert other.token_ids == reply.token_ids
        if method == "counterfactual-generation":
            with pytest.raises(Refused, match="counterfactual-generation does not give the very tokens"):
                RecordedRun.of(lm, other, SETTINGS)
        else:
            assert RecordedRun.of(lm, other, SETTINGS) == run


def test_changes_of_tokens_prompt_and_law_meet_the_recorded_noise() -> None:
    lm = model()
    _, run = recorded(lm)
    settings = {**SETTINGS, "seed": 5}
    token = (run.tokens[2] + 1) % 7
    expected = lm.generate(PROMPT, f"counterfactual-generation(interventions=2:{token})", **settings)
    assert run.replay(lm, f"2:{token}").token_ids == expected.token_ids
    prompt = [1, 2, 2, 4]
    expected = lm.generate(prompt, "autoregressive", **settings)
    assert run.replay(lm, prompt=prompt).token_ids == expected.token_ids
    expected = lm.generate(PROMPT, "autoregressive", **{**settings, "temperature": 1.7, "max_tokens": 9})
    assert run.replay(lm, changes={"temperature": 1.7, "max_completion_tokens": 9}).token_ids == expected.token_ids
    fresh = run.replay(lm, f"2:{token}", noise="fresh")
    assert fresh.token_ids[:3] == [*run.tokens[:2], token]
    assert fresh.token_ids != run.replay(lm, f"2:{token}").token_ids
    assert fresh.token_ids != run.replay(lm, f"2:{token}", noise="fresh", fresh_seed=1).token_ids


def test_a_run_of_another_model_or_tokenizer_is_refused() -> None:
    lm = model()
    _, run = recorded(lm)
    other = scripted_language_model(TabularScorer(10, order=2, seed=3, name="another"))
    with pytest.raises(BadInput, match="recorded with tabular, and the weights of another are others"):
        run.replay(other)

    moved = model()
    moved.name = moved.network.name = "elsewhere"
    moved.network.fingerprint = lm.network.fingerprint  # type: ignore[method-assign]
    assert run.replay(moved).token_ids == list(run.tokens)

    class Retrained(TabularScorer):
        def fingerprint(self) -> str:
            return "other weights"

    with pytest.raises(BadInput, match="recorded with tabular, and the weights of tabular are others"):
        run.replay(scripted_language_model(Retrained(10, order=2, seed=3)))

    class Shifted(LetterTokenizer):
        def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
            return super().decode([token + 1 for token in token_ids])

    with pytest.raises(BadInput, match="another tokenizer than that of tabular"):
        run.replay(SmallLanguageModel(lm.network, Shifted(10)))


def test_a_law_that_is_not_what_it_was_is_refused() -> None:
    lm = model()
    _, run = recorded(lm)

    def with_settings(**settings: Any) -> RecordedRun:
        return dataclasses.replace(run, settings={**run.settings, **settings})

    with pytest.raises(
        BadInput, match=r"had the steps .*temperature, top_p, and its settings now have .*temperature, top_p, min_p"
    ):
        with_settings(min_p=0.1).check(lm)
    with pytest.raises(BadInput, match="had the steps none"):
        dataclasses.replace(run, order=()).check(lm)
    with pytest.raises(BadInput, match="none of this version: 'dreams' is not a setting"):
        with_settings(dreams=1).check(lm)
    for settings in ({"seed": None}, {"chance": "gumbel"}, {"n": 2}):
        with pytest.raises(BadInput, match="does not say its noise"):
            with_settings(**settings).check(lm)
    with pytest.raises(BadInput, match="has a token 10, and tabular has 10"):
        dataclasses.replace(run, tokens=(3, 10)).check(lm)
    with pytest.raises(BadInput, match="has a token 11"):
        dataclasses.replace(run, prompt=(11,), tokens=()).check(lm)


def test_the_noise_itself_cannot_be_changed() -> None:
    lm = model()
    _, run = recorded(lm)
    for name, value in (("seed", 3), ("chance", "structural"), ("n", 2), ("num_return_sequences", 2)):
        with pytest.raises(BadSetting, match=f"{name} makes the noise of the recorded run"):
            run.replay(lm, changes={name: value})
    for arguments in ({"prompt": [1, 2]}, {"changes": {"top_k": 3}}):
        with pytest.raises(BadSetting, match="set tokens, and leave these alone"):
            run.replay(lm, noise="posterior", **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="no place"):
        run.replay(lm, f"{len(run.tokens)}:1")


def test_what_cannot_be_recorded() -> None:
    for settings, said in (
        ({"chance": "gumbel"}, "not with gumbel"),
        ({}, "not with addressed"),
        ({"chance": "structural", "n": 2}, "not of n=2"),
        ({"chance": "structural", "stopping_criteria": [len]}, "stopping_criteria cannot be written"),
    ):
        with pytest.raises(BadSetting, match=said):
            check_recordable(settings, 10)
    with pytest.raises(Refused, match="beam-search does not give"):
        check_recordable({"chance": "structural"}, 10, as_method("beam-search"))
    check_recordable({"chance": "structural"}, 10, as_method("cascade"))
    settings = {"chance": "structural(noise=rank)", "target": "guidance(scale=2.0)"}
    assert check_recordable(settings, 10) == settings
    from decodery.engine.settings import Settings

    assert check_recordable(
        {"chance": Settings.of(settings, 10).chance, "target": Settings.of(settings, 10).target}, 10
    ) == {
        **settings,
        "target": Settings.of(settings, 10).target.spec(),  # type: ignore[union-attr]
    }


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RecordedRun)])
def test_every_field_must_be_there_and_be_of_its_kind(written: Path, name: str) -> None:
    text = written.read_text()
    with pytest.raises(BadInput, match=f"has no field '{name}'"):
        RecordedRun.read(changed(written, **{name: ...}))
    listed = isinstance(json.loads(text)[name], list)
    for value in (7, None, [True], [-1], [1.5], "text" if listed or name == "settings" else ["text"], [[1]]):
        written.write_text(text)
        with pytest.raises(BadInput, match=f"{name} must be"):
            RecordedRun.read(changed(written, **{name: value}))


def test_a_file_that_is_none(written: Path, tmp_path: Path) -> None:
    text = written.read_text()
    for said, fields in (
        ("no recorded run of this version", {"format": "decodery run 2"}),
        ("no recorded run of this version", {"format": ...}),
        ("a field 'tokns', which no recorded run has; did you mean tokens", {"tokns": []}),
        ("prompt must hold at least one token", {"prompt": []}),
    ):
        written.write_text(text)
        with pytest.raises(BadInput, match=said):
            RecordedRun.read(changed(written, **fields))
    for content in ("{", "[]", '"text"'):
        written.write_text(content)
        with pytest.raises(BadInput, match=r"no JSON file|no recorded run"):
            RecordedRun.read(written)
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        RecordedRun.read(tmp_path / "missing.json")
    assert json.loads(text)["format"] == FORMAT
