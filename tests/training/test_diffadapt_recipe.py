"""The recipe of diffadapt: questions with checkable answers, labels, entropies, the probe, and going on where it was."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.errors import BadInput
from decodery.evaluation.short_questions import KINDS, ShortQuestion, short_questions
from decodery.models.forward import POST_NORM, Forward
from decodery.routing.diffadapt.strategies import CLASSES, Policy, Router, Strategy, mean_entropy
from decodery.testing import toy_language_model
from decodery.training import diffadapt
from decodery.training.diffadapt import (
    EASY,
    HARD,
    NORMAL,
    ProbeRecipe,
    balanced_accuracy,
    classes_of,
    label,
    main,
    observed,
    prompt_ids,
    train_probe,
    written_answers,
)

SMALL = ProbeRecipe(questions=6, samples=3, budget=10, batch=6, seed=3)
POLICY = Policy(preamble="some examples; ")
HOT = Policy(normal=Strategy("\nThink:", 8.0, 1.0), preamble="some examples; ")


class TestQuestions:
    def test_all_kinds_come_and_none_twice(self) -> None:
        questions = short_questions(160, 1)
        assert {one.kind for one in questions} == set(KINDS)
        assert len({one.text for one in questions}) == 160
        assert questions == short_questions(160, 1) != short_questions(160, 2)
        assert short_questions(7, 1) == questions[:7]
        counts = [sum(one.kind == kind for one in short_questions(200, 1)) for kind in KINDS]
        assert max(counts) - min(counts) < 12
        assert len({one.text for one in short_questions(450, 1)}) == 450

    def test_held_out_questions_are_others(self) -> None:
        own, other = ({one.text for one in short_questions(300, seed, held)} for seed, held in ((0, False), (5, True)))
        assert not own & other

    def test_answers_are_right(self) -> None:
        for one in short_questions(300, 4):
            numbers = [int(word) for word in re.findall(r"\d+", one.text)]
            if one.kind in ("one-digit sum", "two-digit sum", "three numbers", "gain"):
                assert int(one.answer) == sum(numbers)
            elif one.kind == "product":
                assert int(one.answer) == numbers[0] * numbers[1]
            elif one.kind == "loss":
                assert int(one.answer) == numbers[0] - numbers[1] > 0
            elif one.kind == "two steps":
                assert int(one.answer) == numbers[0] * numbers[1] + numbers[2]
            elif one.kind == "successor":
                assert int(one.answer) == numbers[0] + 1
            elif one.kind == "larger":
                assert int(one.answer) == max(numbers)
                assert len(set(numbers)) == 2
            elif one.kind.startswith(("second", "last")):
                listed = one.text.split(": ")[1].rstrip("?").split(", ")
                assert one.answer == (listed[1] if one.kind.startswith("second") else listed[-1])
                assert len(set(listed)) == len(listed)
            elif one.kind == "first letter":
                assert one.text.split('"')[1].startswith(one.answer)
            elif one.kind == "copy":
                assert one.text.split('"')[1] == one.answer

    @pytest.mark.parametrize(
        ("answer", "written", "right"),
        [
            ("7", "\nAnswer: 7", True),
            ("7", "\nThink: 3 and 4 are 7.\nAnswer: 7\n", True),
            ("7", "\nThink: 3 and 4 are 7.", False),
            ("7", "\nAnswer: 17", False),
            ("7", "\nAnswer: It is 7 apples", True),
            ("1200", "\nAnswer: 1,200.", True),
            ("road", '\nAnswer: "Road".', True),
            ("road", "\nAnswer: The word is 'road'!", True),
            ("road", "\nAnswer: road or door", False),
            ("road", "\nAnswer:", False),
            ("road", "\nAnswer: road\nAnswer: door", False),
            ("road", "\nAnswer: road\nmore", True),
            ("7", "\nAnswer: seven", False),
        ],
    )
    def test_what_counts_as_right(self, answer: str, written: str, right: bool) -> None:
        assert ShortQuestion("x", "?", answer).right(written) is right


class TestLabels:
    def test_three_thresholds(self) -> None:
        shares = np.array([0.0, 0.1, 0.2, 0.5, 0.7, 0.8, 1.0, 1.0])
        entropies = np.array([3.0, 1.0, 2.0, 2.0, 0.5, 1.5, 0.4, 1.6])
        found = label(shares, entropies, replace(SMALL, least=2))
        assert (found.gamma, found.alpha, found.moved) == (0.2, 0.7, False)
        assert found.beta == pytest.approx(1.0)  # the median of 0.5, 1.5, 0.4, 1.6
        assert found.classes.tolist() == [HARD, HARD, NORMAL, NORMAL, NORMAL, EASY, NORMAL, EASY]
        assert classes_of(shares, entropies, 0.6, 0.7, 1.6).tolist() == [HARD] * 4 + [NORMAL] * 3 + [EASY]

    def test_few_of_a_class_move_the_thresholds(self) -> None:
        shares = np.array([0.4, 0.5, 0.6, 0.6, 0.8, 0.9])
        entropies = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 1.5])
        found = label(shares, entropies, replace(SMALL, least=1))
        assert found.moved
        assert (found.gamma, found.alpha) == pytest.approx(tuple(np.quantile(shares, [1 / 3, 2 / 3])))
        assert np.bincount(found.classes, minlength=3).min() >= 1
        none = label(np.zeros(6), entropies, replace(SMALL, least=1))
        assert none.classes.tolist() == [HARD] * 6

    def test_balanced_accuracy(self) -> None:
        assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 2])) == 0.5
        assert balanced_accuracy(np.array([0, 1, 2]), np.array([0, 1, 2])) == 1.0


class TestProbe:
    def rows(self, count: int = 240) -> tuple[torch.Tensor, np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        classes = torch.randint(0, 3, (count,), generator=generator)
        rows = torch.randn(count, 8, generator=generator)
        rows[:, 3] = 40 * rows[:, 3] + 100  # a channel far from the others
        rows[torch.arange(count), classes] += 3 * torch.tensor([1.0, 1.0, 1.0])[classes]
        return rows, classes.numpy()

    def test_it_learns_what_rows_tell(self) -> None:
        rows, classes = self.rows()
        probe, metrics = train_probe(rows, classes, ProbeRecipe(rate=1e-2))
        assert metrics["balanced_accuracy"] > 0.8
        assert balanced_accuracy(probe(rows).argmax(dim=-1).numpy(), classes) > 0.85
        assert probe.first.out_features == 128
        again, _ = train_probe(rows, classes, ProbeRecipe(rate=1e-2))
        assert torch.equal(again.first.weight, probe.first.weight)
        other, _ = train_probe(rows, classes, ProbeRecipe(rate=1e-2, seed=5, width=16))
        assert other.first.out_features == 16

    def test_options_act(self) -> None:
        rows, classes = self.rows(90)
        steps: list[int] = []

        def count(stage: str, done: int, total: int, note: str = "") -> None:
            steps.append(done)

        weights = {}
        for name, options in {
            "plain": {},
            "steps": {"steps": 5},
            "decay": {"decay": 5.0},
            "held out": {"held_out": 0.5},
            "patience": {"patience": 1, "rate": 1.0},
        }.items():
            steps.clear()
            probe, _ = train_probe(rows, classes, replace(SMALL, **options), count)
            weights[name] = probe.first.weight.detach().clone()
            if name == "steps":
                assert steps[-1] == 5
            if name == "patience":
                assert steps[-1] < 200
        assert all(not torch.equal(weights["plain"], weights[name]) for name in ("steps", "decay", "held out"))

    def test_rare_classes_weigh_as_much(self) -> None:
        generator = torch.Generator().manual_seed(1)
        classes = torch.tensor([0] * 180 + [1] * 15 + [2] * 15)
        rows = torch.randn(210, 4, generator=generator)
        rows[:, 0] += classes
        probe, _ = train_probe(rows, classes.numpy(), ProbeRecipe(rate=1e-2))
        chosen = probe(rows).argmax(dim=-1)
        assert (chosen[classes == 2] == 2).float().mean() > 0.5

    def test_a_class_that_is_missing_is_named(self) -> None:
        with pytest.raises(BadInput, match="no question to learn from is easy, hard"):
            train_probe(torch.randn(20, 4), np.ones(20, dtype=np.int64), SMALL)


class TestAnswers:
    def test_answers_are_those_of_the_normal_way_and_are_kept(self, tmp_path: Path) -> None:
        lm, questions = toy_language_model(), short_questions(5, 3)
        first = written_answers(lm, questions[:3], HOT, replace(SMALL, questions=3), tmp_path)
        lines = (tmp_path / "answers.jsonl").read_text()
        whole = written_answers(lm, questions, HOT, SMALL, tmp_path)
        assert whole[:2] == first[:2]
        assert (tmp_path / "answers.jsonl").read_text().startswith(lines)
        assert [len(one) for one in whole] == [3] * 5
        assert len({tuple(one) for one in whole[0]}) > 1
        again = written_answers(lm, questions, HOT, SMALL, tmp_path)
        assert again == whole
        wanted = lm.generate(
            [*lm.encode(HOT.preamble), *lm.encode(questions[0].text), *lm.encode(HOT.normal.suffix)],
            "autoregressive",
            temperature=8.0,
            seed=SMALL.seed * 1_000_003 + 1,
            max_new_tokens=10,
            stop=["\n\n"],
        )
        assert whole[0][1] == list(wanted.token_ids)
        with pytest.raises(BadInput, match="answers to other questions"):
            written_answers(lm, short_questions(5, 4), HOT, SMALL, tmp_path)

    def test_what_is_observed(self) -> None:
        lm, questions = toy_language_model(), short_questions(2, 3)
        answers = [[lm.encode(" Answer: 3"), lm.encode(" Answer: 3"), lm.encode("xy")] for _ in questions]
        rows, shares, entropies = observed(lm, questions, answers, POLICY)
        for place, question in enumerate(questions):
            neutral = prompt_ids(lm, POLICY, question.text)
            [scores] = lm.network.run([Forward(lm.network.new_sequence(), neutral, taps=(POST_NORM,))])
            assert torch.allclose(rows[place], scores.hidden[POST_NORM][-1], atol=1e-5)
            found = []
            for answer in answers[place]:
                text = [*neutral, *lm.encode(POLICY.normal.suffix), *answer]
                [scores] = lm.network.run([Forward(lm.network.new_sequence(), text)])
                found.append(mean_entropy(scores.logits[len(text) - len(answer) - 1 : -1]))
            assert entropies[place] == pytest.approx(np.mean(found), abs=1e-5)
            assert shares[place] == pytest.approx(2 / 3 if question.answer == "3" else 0)
        known = ShortQuestion("x", questions[0].text, "3")
        assert observed(lm, [known], answers[:1], POLICY)[1][0] == pytest.approx(2 / 3)

    def test_prompts_without_examples(self) -> None:
        lm = toy_language_model()
        assert prompt_ids(lm, Policy(), "what") == lm.tokenize("what")


def test_the_whole_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lm = toy_language_model()
    monkeypatch.setattr("decodery.loading.load", lambda name: lm)
    monkeypatch.setattr(diffadapt, "observed", _spread(diffadapt.observed))
    places = ["--folder", str(tmp_path / "work"), "--artifact", str(tmp_path / "probe")]
    main([*places, "--questions", "16", "--samples", "2", "--budget", "4", "--least", "1", "--steps", "3"])
    router = Router.read(tmp_path / "probe")
    card = json.loads((tmp_path / "probe" / "card.json").read_text())
    assert router.fingerprint == lm.network.fingerprint() == card["fingerprint"]
    assert router.policy.preamble
    assert router.policy.stop == "\n\n"
    assert sum(card["metrics"]["questions"].values()) == 16
    assert set(card["metrics"]["questions"]) == set(CLASSES)
    assert sum(map(sum, card["kinds"].values())) == 16
    assert len(card["lengths"]) == 3
    assert card["recipe"]["samples"] == 2
    assert "--questions 16 --samples 2" in card["command"]
    assert json.loads(capsys.readouterr().out) == card["metrics"]
    reply = lm.generate("What is 1 plus 1?", f"diffadapt(probe={tmp_path / 'probe'})", max_new_tokens=5, seed=1)
    assert reply.stats.details["strategy"] in CLASSES


def _spread(real: Any) -> Any:
    """What is observed, with shares of all sizes: the toy knows no answer."""

    def made(*given: Any) -> Any:
        rows, shares, entropies = real(*given)
        return rows, np.linspace(0, 1, len(shares)), entropies

    return made


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lm = toy_language_model()
    monkeypatch.setattr("decodery.loading.load", lambda name: lm)
    places = ["--folder", str(tmp_path / "work"), "--artifact", str(tmp_path / "probe")]
    with pytest.raises(SystemExit) as ended:
        main([*places, "--questions", "4", "--samples", "1", "--budget", "2"])
    assert ended.value.code == 2
    assert "no question to learn from" in capsys.readouterr().err
