"""The benchmark on the toy model: what it counts, what it compares, and what it writes."""

from __future__ import annotations

import csv
import json

import pytest

from decodery.errors import BadInput, BadSetting, MethodUnavailable, UnknownMethod
from decodery.evaluation.benchmark import run_benchmark
from decodery.evaluation.entrants import Answer
from decodery.evaluation.questions import CONVERSATION, Question, load_questions
from decodery.evaluation.report import AVERAGE, OVERALL, Row, Tally
from decodery.testing import scripted_language_model, story_scorer, toy_language_model, watched

QUESTIONS = [
    Question("1", "qa", ("why is it so?",)),
    Question("2", "qa", ("who was it?",)),
    Question("3", CONVERSATION, ("tell me more", "and then?")),
    Question("4", "rag", ("look it up here: a b c a b c",)),
]
METHODS = ["token-recycling", "prompt-lookup(length=4)"]


@pytest.fixture(scope="module")
def lm():
    return toy_language_model(seed=1)


@pytest.fixture(scope="module")
def report(lm):
    return run_benchmark(lm, METHODS, QUESTIONS, max_new_tokens=24, repeats=2)


class TestRows:
    def test_every_entrant_has_every_category(self, report):
        entrants = ["autoregressive", "bare forward", *METHODS]
        assert list(dict.fromkeys(row.method for row in report.rows)) == entrants
        for entrant in entrants:
            found = [row.category for row in report.rows if row.method == entrant]
            assert found == [CONVERSATION, "qa", "rag", OVERALL, AVERAGE]

    def test_overall_is_the_total(self, report):
        for method in ("autoregressive", *METHODS):
            parts = [report.row(method, category) for category in (CONVERSATION, "qa", "rag")]
            overall = report.row(method)
            assert overall.requests == sum(row.requests for row in parts) == 2 * 5
            assert overall.new_tokens == sum(row.new_tokens for row in parts)
            assert overall.seconds == pytest.approx(sum(row.seconds for row in parts))
            assert overall.tokens_per_second == pytest.approx(overall.new_tokens / overall.seconds)

    def test_plain_decoding_is_the_measure(self, report):
        plain = report.row("autoregressive")
        assert plain.speedup == 1.0
        assert plain.acceptance_length == 1.0
        assert plain.identical == 1.0
        assert plain.forwards == plain.new_tokens
        assert plain.drafted == plain.accepted == 0
        for method in METHODS:
            row = report.row(method)
            assert row.speedup == pytest.approx(row.tokens_per_second / plain.tokens_per_second)
            assert row.identical == 1.0
            assert row.new_tokens == plain.new_tokens
            assert row.forwards < plain.forwards
            assert row.acceptance_length > 1.1
            assert 0 < row.first_token_seconds < row.seconds
            assert row.tokens_per_second_deviation >= 0

    def test_the_average_counts_categories_alike(self, report):
        for method in ("autoregressive", *METHODS):
            parts = [report.row(method, category) for category in (CONVERSATION, "qa", "rag")]
            average = report.row(method, AVERAGE)
            assert average.tokens_per_second == pytest.approx(sum(r.tokens_per_second for r in parts) / 3)
            assert average.requests is None
        reference = report.row("autoregressive", AVERAGE).tokens_per_second
        average = report.row(METHODS[0], AVERAGE)
        assert average.speedup == pytest.approx(average.tokens_per_second / reference)

    def test_bare_forwards_are_those_of_plain_decoding(self, report, lm):
        bare, plain = report.row("bare forward"), report.row("autoregressive")
        assert bare.new_tokens == plain.new_tokens
        assert bare.forwards == plain.forwards
        assert report.engine_overhead == pytest.approx(plain.seconds / bare.seconds - 1)
        seen: list[tuple[int, int]] = []
        with watched(lm.network, lambda forward: seen.append((forward.count, forward.sequence.length))):
            run_benchmark(lm, [], QUESTIONS[:1], max_new_tokens=8, warmup=1)
        assert seen[: len(seen) // 4] * 4 == seen, "plain, bare, plain, bare: the same rows at the same lengths"


class TestRuns:
    def test_second_turns_follow_plain_decoding_s_answer(self, lm):
        prompts: list[tuple[str, list[list[int]]]] = []
        generate = lm.generate

        def spy(prompt, **arguments):
            prompts.append((arguments["method"], prompt))
            return generate(prompt, **arguments)

        lm.generate = spy
        try:
            run_benchmark(lm, METHODS, QUESTIONS[2:3], max_new_tokens=12, warmup=0)
        finally:
            del lm.generate
        seconds = [prompt for _, [prompt] in prompts if len(prompt) > 20]
        assert len(seconds) == 3
        assert all(prompt == seconds[0] for prompt in seconds)
        answer = generate([{"role": "user", "content": "tell me more"}], method="autoregressive", max_new_tokens=12)
        assert answer.text in lm.tokenizer.decode(seconds[0])

    def test_the_order_rotates(self):
        lm = scripted_language_model(story_scorer())
        order = []
        generate = lm.generate
        lm.generate = lambda prompt, **arguments: order.append(arguments["method"]) or generate(prompt, **arguments)
        run_benchmark(lm, ["prompt-lookup"], QUESTIONS[:2], max_new_tokens=4, warmup=0)
        assert order[2:] == ["autoregressive", "prompt-lookup", "prompt-lookup", "autoregressive"]

    def test_memory_lasts_through_a_repeat_and_no_longer(self, lm):
        question = [QUESTIONS[0]]
        cold = run_benchmark(lm, ["token-recycling"], question, max_new_tokens=24).row("token-recycling")
        twice = run_benchmark(lm, ["token-recycling"], question * 2, max_new_tokens=24).row("token-recycling")
        again = run_benchmark(lm, ["token-recycling"], question, max_new_tokens=24, repeats=2).row("token-recycling")
        assert again.forwards == 2 * cold.forwards
        assert twice.forwards < 2 * cold.forwards
        assert not [place for place in lm.memory if str(place[0]).startswith("benchmark")]

    def test_batches_stay_within_a_category(self, lm):
        report = run_benchmark(lm, METHODS, QUESTIONS, max_new_tokens=16, batch_size=3)
        assert report.row("autoregressive", "qa").requests == 2
        assert all(report.row(method).identical == 1.0 for method in METHODS)
        assert report.row("bare forward").new_tokens == report.row("autoregressive").new_tokens

    def test_sampling_has_a_seed_per_question(self, lm):
        report = run_benchmark(lm, METHODS, QUESTIONS, max_new_tokens=16, temperature=1.0, seed=3)
        assert all(report.row(method).identical == 1.0 for method in METHODS), "their drafts are deterministic"

    def test_progress_is_told(self, lm):
        told = []
        run_benchmark(lm, [], QUESTIONS[:2], max_new_tokens=4, repeats=2, on_progress=lambda *step: told.append(step))
        assert told == [("benchmark", done, 4) for done in range(5)]

    def test_questions_that_do_not_fit_are_left_out_and_noted(self):
        lm = toy_language_model(seed=1, context=128)
        long = Question("9", "qa", ("word " * 40,))
        report = run_benchmark(lm, [], [*QUESTIONS[:2], long], max_new_tokens=16)
        assert report.provenance["questions"] == 2
        assert "1 questions do not fit" in report.notes[0]
        with pytest.raises(BadInput, match="none of the 1 questions"):
            run_benchmark(lm, [], [long], max_new_tokens=16)

    def test_our_own_questions_run(self, lm):
        report = run_benchmark(lm, ["suffix-automaton"], load_questions(per_category=1), max_new_tokens=6)
        assert report.provenance["prompts"] == "decodery's own questions"
        assert len({row.category for row in report.rows}) == 8
        assert report.row("suffix-automaton").identical == 1.0


class TestAgainstTransformers:
    def test_all_three_decode_the_same_text(self):
        lm = toy_language_model(seed=1, layers=3)
        report = run_benchmark(lm, [], QUESTIONS[:2], max_new_tokens=16, against=["transformers"])
        names = ["transformers: generate", "transformers: prompt lookup", "transformers: assisted, 1 layers"]
        assert [row.method for row in report.rows if row.category == OVERALL][2:] == names
        for name in names:
            assert report.row(name).identical == 1.0
            assert report.row(name).acceptance_length is None
        assert lm.network.model.config.num_hidden_layers == 3
        again = lm.generate("hello", method="autoregressive", max_new_tokens=8)
        assert len(again.token_ids) == 8, "the model is left as it was"

    def test_batches_are_padded_on_the_left(self):
        lm = toy_language_model(seed=1, layers=3)
        report = run_benchmark(lm, [], QUESTIONS[:2], max_new_tokens=16, against=["transformers"], batch_size=2)
        assert report.row("transformers: generate").identical == 1.0
        assert len(report.notes) == 2
        assert "one prompt at a time" in report.notes[0]

    def test_sampling(self):
        lm = toy_language_model(seed=1)
        report = run_benchmark(lm, [], QUESTIONS[:1], max_new_tokens=8, against=["transformers"], temperature=0.9)
        assert report.row("transformers: generate").new_tokens > 0

    def test_unknown_engines_and_models(self, lm):
        with pytest.raises(BadSetting, match="no engine"):
            run_benchmark(lm, [], QUESTIONS, against=["vllm"])
        with pytest.raises(BadSetting, match="no transformers model"):
            run_benchmark(scripted_language_model(story_scorer()), [], QUESTIONS, against=["transformers"])


class TestWriting:
    def test_json(self, report, tmp_path):
        report.write_json(tmp_path / "report.json")
        told = json.loads((tmp_path / "report.json").read_text())
        assert told == json.loads(json.dumps(report.as_dict()))
        source = told["provenance"]
        assert source["model"] == "toy-1"
        assert source["dtype"] == "float32"
        assert source["prompts"] == "questions given"
        assert (source["questions"], source["repeats"], source["max_new_tokens"]) == (4, 2, 24)
        assert set(source["versions"]) == {"decodery", "torch", "transformers", "python"}
        assert {"device", "hardware", "threads", "date", "command", "seed", "temperature"} <= set(source)

    def test_csv(self, report, tmp_path):
        report.write_csv(tmp_path / "report.csv")
        with (tmp_path / "report.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(report.rows) == 20
        assert rows[0]["method"] == "autoregressive"
        assert float(rows[0]["speedup"]) == 1.0
        assert rows[4]["seconds"] == "", "an average has no total"

    def test_table(self, report):
        header, *lines = report.table()
        assert header[:3] == ("method", "tokens/s", "speed-up")
        assert header[-3:] == (CONVERSATION, "qa", "rag")
        assert [line[0] for line in lines] == ["autoregressive", "bare forward", *METHODS]
        assert all(len(line) == len(header) for line in lines)
        assert all(isinstance(cell, str) for line in lines for cell in line)

    def test_markdown(self, report):
        text = report.markdown()
        assert text.startswith("| method | tokens/s |")
        assert "toy-1 in float32" in text
        assert "4 questions (questions given)" in text


def test_bad_calls(lm):
    with pytest.raises(BadInput, match="no questions"):
        run_benchmark(lm, [], [])
    with pytest.raises(BadSetting, match="repeats"):
        run_benchmark(lm, [], QUESTIONS, repeats=0)
    with pytest.raises(UnknownMethod):
        run_benchmark(lm, ["token-recycle"], QUESTIONS)
    with pytest.raises(MethodUnavailable):
        run_benchmark(lm, ["draft-model(layers=7)"], QUESTIONS)
    with pytest.raises(KeyError):
        run_benchmark(lm, [], QUESTIONS[:1], max_new_tokens=2).row("nobody")


def test_rows_come_from_totals():
    fast, slow = Tally(), Tally()
    slow.add([Answer((1, 2, 3), rounds=3, drafted=0, accepted=0)], 3.0, [(1, 2, 3)])
    slow.add([Answer((1,), rounds=1, drafted=0, accepted=0)], 1.0, [(1,)])
    fast.add([Answer((1, 2, 3), rounds=1, drafted=4, accepted=2)], 1.0, [(1, 2, 3)])
    fast.add([Answer((9,), rounds=1, drafted=2, accepted=0)], 1.0, [(1,)])
    row = Row.of("fast", OVERALL, fast, slow, [fast, slow])
    assert row.speedup == 2.0
    assert row.acceptance_length == 2.0
    assert row.acceptance_rate == pytest.approx(1 / 3)
    assert row.identical == 0.5
    assert row.forwards is None
    assert row.tokens_per_second_deviation == pytest.approx(2**-0.5)
