"""A model's answers: prompts that may be seen, files that are kept, and rows that are computed again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from decodery.errors import BadInput
from decodery.evaluation.questions import load_questions
from decodery.models.forward import POST_NORM
from decodery.testing import toy_language_model
from decodery.training import answers
from decodery.training.answers import (
    AnswerRecipe,
    all_prompts,
    file_prompts,
    for_training,
    hidden_rows,
    in_groups,
    kept_for_tests,
    read_answers,
    write_answers,
)

RECIPE = AnswerRecipe(prompts=10, answers=2, temperatures=(0.0, 0.7, 1.0), new_tokens=8, batch=4, seed=3)


@pytest.fixture(scope="module")
def lm():
    return toy_language_model(seed=1, layers=2, hidden=16)


def questions_file(folder: Path, name: str = "question.jsonl") -> Path:
    path = folder / name
    lines = [
        {"question_id": number, "category": category, "turns": [f"{category} {number}?", "And then?"]}
        for category in ("qa", "rag")
        for number in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class TestPrompts:
    def test_of_questions_every_second_one_of_a_category_is_never_seen(self, tmp_path: Path) -> None:
        path = questions_file(tmp_path)
        seen = file_prompts(path)
        assert seen == ["qa 0?", "qa 2?", "qa 4?", "rag 0?", "rag 2?", "rag 4?"]
        kept = [question.turns[0] for question in kept_for_tests(load_questions(path))]
        assert kept == ["qa 1?", "qa 3?", "rag 1?", "rag 3?"]
        prompts = all_prompts(AnswerRecipe(prompts=50, files=(str(path),)))
        assert set(seen) <= set(prompts)
        assert not set(kept) & set(prompts)

    def test_decodery_s_own_questions_are_never_seen(self, tmp_path: Path) -> None:
        own = load_questions()
        assert for_training(own) == []
        assert kept_for_tests(own) == own
        path = tmp_path / "copied.jsonl"
        asked = [turn for question in own for turn in question.turns]
        path.write_text("\n".join(json.dumps({"question": turn}) for turn in [*asked, "A new one?"]))
        assert all_prompts(AnswerRecipe(prompts=0, files=(str(path),))) == ["A new one?"]
        assert not set(asked) & set(all_prompts(AnswerRecipe()))

    @pytest.mark.parametrize(
        "name", ["test.jsonl", "gsm8k_test.jsonl", "dev.jsonl", "held-out.txt", "spec.valid.jsonl", "my_heldout.jsonl"]
    )
    def test_files_for_tests_are_refused(self, tmp_path: Path, name: str) -> None:
        path = questions_file(tmp_path, name)
        with pytest.raises(BadInput, match="is kept to measure on"):
            all_prompts(AnswerRecipe(prompts=5, files=(str(path),)))

    def test_other_names_are_not(self, tmp_path: Path) -> None:
        for name in ("contest.jsonl", "devices.jsonl", "train.jsonl"):
            assert len(file_prompts(questions_file(tmp_path, name))) == 6

    def test_what_a_line_asks(self, tmp_path: Path) -> None:
        path = tmp_path / "train.jsonl"
        lines = [
            {"instruction": "Add.", "instances": [{"input": "1 and 2", "output": "3"}]},
            {"instruction": "Sing.", "instances": [{"input": "", "output": "la"}]},
            {"instruction": "Say.", "input": "hello"},
            {"question": "Why?", "answer": "Because."},
            {"text": "Write a program."},
            {"something": "else"},
        ]
        path.write_text("\n".join(map(json.dumps, lines)))
        assert file_prompts(path) == ["Add.\n1 and 2", "Sing.", "Say.\nhello", "Why?", "Write a program."]

    def test_stories_are_to_be_continued(self, tmp_path: Path) -> None:
        path = tmp_path / "tales.txt"
        path.write_text("Chapter 1\n\n" + "Once upon\na time. " * 20 + "\n\n" + "x" * 700)
        [prompt] = file_prompts(path)
        assert prompt.startswith("Continue this story: Once upon a time. Once")

    def test_sizes(self, tmp_path: Path) -> None:
        path = tmp_path / "train.jsonl"
        texts = [f"question {number}" for number in range(30)] + ["long " * 1000]
        path.write_text("\n".join(json.dumps({"question": text}) for text in texts))
        recipe = AnswerRecipe(prompts=20, files=(str(path),), per_file=7)
        prompts = all_prompts(recipe)
        assert len(prompts) == len(set(prompts)) == 27
        assert prompts == all_prompts(recipe) != all_prompts(dataclasses.replace(recipe, seed=1))
        assert len(all_prompts(dataclasses.replace(recipe, per_file=100))) == 50
        few = all_prompts(AnswerRecipe(prompts=8, kinds=4, topics=2))
        assert all("lighthouses" in prompt or "honey" in prompt for prompt in few)
        path.write_text(json.dumps({"nothing": 1}))
        with pytest.raises(BadInput, match="holds no prompts"):
            all_prompts(recipe)

    @pytest.mark.parametrize(
        "change", [{"answers": 4}, {"answers": 0}, {"temperatures": (-1.0,), "answers": 1}, {"batch": 0}]
    )
    def test_what_cannot_be_is_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(BadInput):
            dataclasses.replace(RECIPE, **change)


class TestAnswers:
    def test_each_prompt_is_answered_at_two_temperatures(self, lm, tmp_path: Path) -> None:
        found = write_answers(lm, RECIPE, tmp_path)
        assert len(found) == 20
        assert all(len(answer.output) <= 8 for answer in found)
        given: dict[tuple[int, ...], set[float]] = {}
        for answer in found:
            given.setdefault(tuple(answer.prompt), set()).add(answer.temperature)
        assert len(given) == 10
        assert all(len(temperatures) == 2 for temperatures in given.values())
        assert read_answers(tmp_path) == found
        hot = read_answers(tmp_path, temperature=1.0)
        assert hot == [answer for answer in found if answer.temperature == 1.0]
        with pytest.raises(BadInput, match=r"no answers at temperature 0\.3"):
            read_answers(tmp_path, temperature=0.3)
        for answer in found:
            if answer.temperature == 0:
                reply = lm.generate(answer.prompt, "autoregressive", max_new_tokens=8)
                assert reply.token_ids == answer.output

    def test_interrupted_it_goes_on_and_the_same_comes_out(self, lm, tmp_path: Path, monkeypatch) -> None:
        whole = write_answers(lm, RECIPE, tmp_path / "whole")
        write_answers(lm, RECIPE, tmp_path / "parts")
        paths = sorted((tmp_path / "parts").glob("*.npz"))
        assert len(paths) == 6
        for path in paths[3:]:
            path.unlink()
        (tmp_path / "parts" / "00003.tmp.npz").write_bytes(b"cut off")
        assert len(read_answers(tmp_path / "parts")) == 10
        seen: list[int] = []
        generate = lm.generate
        monkeypatch.setattr(
            lm, "generate", lambda group, *a, **k: (seen.append(len(group)), generate(group, *a, **k))[1]
        )
        assert write_answers(lm, RECIPE, tmp_path / "parts") == whole
        assert len(seen) == 3
        with pytest.raises(BadInput, match="the work of another recipe"):
            write_answers(lm, dataclasses.replace(RECIPE, seed=4), tmp_path / "parts")

    def test_files_are_compact(self, lm, tmp_path: Path) -> None:
        write_answers(lm, RECIPE, tmp_path)
        with np.load(tmp_path / "00000.npz") as batch:
            assert batch["output"].dtype == batch["prompt"].dtype == np.uint16

    @pytest.mark.parametrize("change", [{"new_tokens": 3}, {"seed": 9}, {"temperatures": (0.0, 2.0, 1.0)}])
    def test_each_setting_matters(self, lm, tmp_path: Path, change: dict[str, object]) -> None:
        one = write_answers(lm, RECIPE, tmp_path / "one")
        other = write_answers(lm, dataclasses.replace(RECIPE, **change), tmp_path / "other")
        assert [answer.output for answer in one] != [answer.output for answer in other]


def test_rows_are_those_that_chose_the_outputs(lm, tmp_path: Path, monkeypatch) -> None:
    found = [answer for answer in write_answers(lm, RECIPE, tmp_path) if answer.temperature == 0 and answer.output]
    whole = hidden_rows(lm, found, (0, POST_NORM))
    best = (whole[POST_NORM] @ lm.network.model.lm_head.weight.T).argmax(dim=-1).tolist()
    assert best == [token for answer in found for token in answer.output]
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 60)
    assert len(list(in_groups(found, 60))) > 1
    assert [answer for group in in_groups(found, 60) for answer in group] == found
    assert torch.allclose(whole[0], hidden_rows(lm, found, (0,))[0], atol=1e-5)


def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("decodery.loading.load", lambda name: toy_language_model(hidden=16))
    told = ["--folder", str(tmp_path), "--prompts", "4", "--answers", "1", "--new-tokens", "3", "--batch", "2"]
    answers.main(told)
    assert json.loads(capsys.readouterr().out)["answers"] == 4
    with pytest.raises(SystemExit) as refused:
        answers.main([*told, "--files", str(tmp_path / "test.txt")])
    assert refused.value.code == 2
    assert "kept to measure on" in capsys.readouterr().err
