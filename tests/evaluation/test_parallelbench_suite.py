"""ParallelBench's suite: published files and made samples, seeds, metrics of missing judges, and the analysis."""

import json
import math

import pytest
import torch

from decodery.errors import BadInput, BadSetting
from decodery.evaluation.parallelbench import suite
from decodery.evaluation.parallelbench.judging import Judges
from decodery.evaluation.parallelbench.oracle import OraclePoint
from decodery.evaluation.parallelbench.published import (
    FILES,
    MADE_TASKS,
    PUBLISHED_TASKS,
    TEXT_TASKS,
    make_items,
    read_items,
    write_items,
)
from decodery.evaluation.parallelbench.tasks import TASKS, make_samples
from decodery.models.masked_diffusion import MaskedDiffusion
from decodery.testing import ByteTokenizer, CanvasScorer, SmallLanguageModel

CANVAS = 192
"""Bytes of the longest answer."""
ENTRANTS = [
    suite.SuiteEntrant("threshold", "0.5", "masked-diffusion(rule=threshold, threshold=0.5)", threshold=0.5),
    suite.SuiteEntrant("threshold", "0.9", "masked-diffusion(rule=threshold, threshold=0.9)", threshold=0.9),
]
TEXTS = {
    "samsum": ({"text": "Ann: Hi Bob."}, {"text": "Ann: Hi Bob.", "summary": "Ann greets Bob warmly."}),
    "chatgpt_paraphrases": ({"text": "What is this?"}, {"text": "What is this?", "examples": "[]"}),
    "words_to_sentence_easy": ({"words": "dog and ball"}, {"words": ["dog", "ball"]}),
    "words_to_sentence_medium": ({"words": "sun and piano"}, {"words": ["sun", "piano"]}),
    "words_to_sentence_hard": ({"words": "moss and algorithm"}, {"words": ["moss", "algorithm"]}),
}
RESPONSES = {
    "samsum": "Ann greets Bob warmly.",
    "chatgpt_paraphrases": "Tell me about it.",
    "words_to_sentence_easy": "The dog has a ball.",
    "words_to_sentence_medium": "The piano stands in the sun.",
    "words_to_sentence_hard": "Moss grows by an algorithm.",
}


class Knowing(CanvasScorer):
    """Writes what stands in a dictionary of prompts, surely, and after it end tokens."""

    def __init__(self, responses):
        super().__init__(CANVAS, len(ByteTokenizer()))
        self.responses = responses

    def score(self, prompt, canvas):
        text = self.responses[bytes(prompt).decode()].encode()
        rows = torch.full((CANVAS, self.mask), -30.0)
        for place in range(CANVAS):
            rows[place, text[place] if place < len(text) else ByteTokenizer().eos_token_id] = 0.0
        return rows


class Recording(SmallLanguageModel):
    """Keeps what it was asked for."""

    def __init__(self, responses, denoiser=Knowing):
        scorer, end = denoiser(responses), ByteTokenizer().eos_token_id
        model = MaskedDiffusion(scorer.mask, False, (end,), (), CANVAS)
        super().__init__(scorer, ByteTokenizer(), (end,), diffusion=model)
        self.prompts, self.seeds = [], []

    def generate(self, prompt, method=None, *, seed=None, **more):
        self.prompts += prompt
        self.seeds += seed
        return super().generate(prompt, method, seed=seed, **more)


def example(item):
    answer = item.entry["answer"]
    return answer if isinstance(answer, str) else answer["example"]


@pytest.fixture
def folder(tmp_path):
    """All 17 files: half of them named by task, half as the benchmark's repository has them."""
    for number, task in enumerate(PUBLISHED_TASKS):
        path = tmp_path / (f"{task}.jsonl" if number % 2 else FILES[task])
        path.parent.mkdir(exist_ok=True)
        if task in MADE_TASKS:
            write_items(make_items(task, 8, seed=5), path)
        else:
            given, answer = TEXTS[task]
            path.write_text(json.dumps({"input": given, "answer": answer, "metadata": {}}) + "\n")
    return tmp_path


def responses_of(folder):
    found = {}
    for number, task in enumerate(PUBLISHED_TASKS):
        for item in read_items(folder / (f"{task}.jsonl" if number % 2 else FILES[task]), task):
            found[item.prompt] = RESPONSES[task] if task in TEXTS else example(item)
    return found


class NoFault:
    def faults(self, text):
        return 0


class Same:
    def f1(self, text, reference):
        return 0.75


def test_all_published_tasks_run_from_their_files(folder, monkeypatch):
    monkeypatch.setattr(Judges, "installed", classmethod(lambda cls, task: cls(NoFault(), Same())))
    lm = Recording(responses_of(folder))
    report = suite.run_suite(lm, ENTRANTS, samples=3, batch_size=2, canvas=CANVAS, published=folder)
    accuracy = {row.task: row.accuracy for row in report.rows if row.setting == "0.9"}
    assert len(accuracy) == 18
    right = dict.fromkeys((*PUBLISHED_TASKS, suite.OVERALL), 1)
    right["chatgpt_paraphrases"] = 0.75
    right["words_to_sentence_hard"] = 0  # "Moss" is not "moss"
    counts = {row.task: row.samples for row in report.rows if row.setting == "0.9"}
    assert counts == {**dict.fromkeys(MADE_TASKS, 3), **dict.fromkeys(TEXT_TASKS, 1), suite.OVERALL: 41}
    right[suite.OVERALL] = (41 - 1.25) / 41
    assert accuracy == pytest.approx(right)
    assert report.told["sources"]["waiting_line_copy"] == "copy.jsonl"
    assert report.told["sources"]["waiting_line_reverse"] == "waiting_line_reverse.jsonl"
    assert not any("not measured" in note for note in report.notes)
    asked = {prompt for prompt in lm.prompts if "Give the list back as it is." in prompt}
    assert len(asked) == 3
    items = read_items(folder / FILES["waiting_line_copy"], "waiting_line_copy")
    assert asked == {items[0].prompt, items[2].prompt, items[5].prompt}, "evenly over the file"
    others = {(row.task, name): value for row in report.rows for name, value in row.metrics.items()}
    assert others["waiting_line_sort", "strict"] == 1
    assert others["samsum", "rouge_l"] == 1
    assert others["chatgpt_paraphrases", "bert_score"] == 0.75
    assert others["words_to_sentence_hard", "all_words"] == 0


def test_wrong_responses_score_nothing(folder):
    lm = Recording(dict.fromkeys(responses_of(folder), "[]"))
    report = suite.run_suite(lm, ENTRANTS, MADE_TASKS, samples=1, canvas=CANVAS, published=folder)
    assert {row.accuracy for row in report.rows} == {0}
    assert all(row.edit_bits is None for row in report.rows), "nobody edited anything"


def test_a_metric_without_its_judge_is_named_with_what_to_install(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(Judges, "installed", classmethod(lambda cls, task: cls()))
    lm = Recording(responses_of(folder))
    report = suite.run_suite(
        lm, ENTRANTS, ["waiting_line_copy", "chatgpt_paraphrases"], samples=1, canvas=CANVAS, published=folder
    )
    rows = {(row.task, row.setting): row for row in report.rows}
    assert rows["chatgpt_paraphrases", "0.5"].accuracy is None
    assert rows["chatgpt_paraphrases", "0.5"].metrics == {"inverse_bleu": 1}
    assert rows[suite.OVERALL, "0.5"].accuracy == 1, "over what is measured"
    notes = "\n".join(report.notes)
    assert "grammar of chatgpt_paraphrases, and so the score: not measured; it needs LanguageTool: pip install" in notes
    assert "pip install bert-score" in notes
    assert any(line[0] == "chatgpt_paraphrases" and line[3] == "not measured" for line in report.table())
    assert ["chatgpt_paraphrases", "threshold", "0.5", "inverse_bleu", "100.0%"] in report.metrics_table()
    report.write_csv(tmp_path / "rows.csv")
    header, *lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert header.endswith("edit_bits,most_edit_bits,strict,inverse_bleu")
    assert len(lines) == len(report.rows)
    suite.draw_curves(report, tmp_path / "curves.png")
    report.write_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["task"] == "waiting_line_copy"


def test_what_a_folder_lacks_is_made_or_left_out_and_the_notes_say_so(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Judges, "installed", classmethod(lambda cls, task: cls(NoFault(), Same())))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "samsum.jsonl").write_bytes((folder / FILES["samsum"]).read_bytes())
    made = {item.prompt: example(item) for task in MADE_TASKS for item in make_items(task, 2)}
    lm = Recording({**made, **responses_of(folder)})
    report = suite.run_suite(lm, ENTRANTS[:1], samples=2, canvas=CANVAS, published=bare)
    assert {row.accuracy for row in report.rows} == {1}
    assert report.told["tasks"] == [*MADE_TASKS, "samsum"]
    assert report.notes[0] == f"made here: {', '.join(MADE_TASKS)}."
    assert report.notes[1] == "from files: samsum (samsum.jsonl)."
    left = [note.split()[0] for note in report.notes[2:]]
    assert left == [task for task in TEXT_TASKS if task != "samsum"]
    assert "words_to_sentence/hard.jsonl" in report.notes[-1]
    alone = suite.run_suite(lm, ENTRANTS[:1], ["waiting_line_sort"], samples=2, canvas=CANVAS)
    assert alone.told["sources"] == {"waiting_line_sort": "made here"}


def test_bad_folders_files_and_tasks_are_told(tmp_path, folder):
    lm = Recording({})
    with pytest.raises(BadInput, match="is no folder"):
        suite.run_suite(lm, ENTRANTS, published=tmp_path / "none")
    with pytest.raises(BadInput, match="samsum is not made here and needs its published file"):
        suite.run_suite(lm, ENTRANTS, ["samsum"])
    (folder / FILES["waiting_line_copy"]).write_text("\n")
    with pytest.raises(BadInput, match="holds no items"):
        suite.run_suite(lm, ENTRANTS, ["waiting_line_copy"], published=folder)
    with pytest.raises(BadSetting, match="'juggling' is no task of the suite"):
        suite.run_suite(lm, ENTRANTS, ["juggling"])
    assert not lm.prompts, "nothing was decoded before"


# Seeds


def texts(samples):
    return [sample.prompt for sample in samples]


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_the_suites_seed_is_that_of_samples_and_draws(seed):
    samples = {task: make_samples(task, 5, seed=seed) for task in ("copy", "shuffle")}
    lm = Recording({sample.prompt: sample.answer for own in samples.values() for sample in own})
    report = suite.run_suite(lm, ENTRANTS[:1], tuple(samples), samples=5, batch_size=2, canvas=CANVAS, seed=seed)
    assert lm.prompts == [prompt for own in samples.values() for prompt in texts(own)]
    assert lm.seeds == 2 * [(seed or 0) + place for place in range(5)]
    assert report.told["seed"] == seed
    assert texts(samples["copy"]) != texts(make_samples("copy", 5, seed=8))


def test_made_items_take_the_suites_seed_and_by_default_the_published_one():
    for seed, own in ((None, 49875), (7, 7)):
        items = make_items("waiting_line_insert_index", 2, seed=own)
        lm = Recording({item.prompt: example(item) for item in items})
        suite.run_suite(lm, ENTRANTS[:1], ["waiting_line_insert_index"], samples=2, canvas=CANVAS, seed=seed)
        assert lm.prompts == texts(items)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batch():
    class Undecided(Knowing):
        def score(self, prompt, canvas):
            rows = super().score(prompt, canvas)
            rows[:3, 97:123] = 0.0
            return rows

    def drawn(seed, batch_size):
        lm = Recording(dict.fromkeys(texts(make_samples("copy", 4)), "abc"))
        lm.network.__class__ = Undecided
        questions = suite.questions_of("copy", 4).questions
        spec = "masked-diffusion(rule=threshold, threshold=0.01)"
        return [found.text for found in suite.decode_questions(lm, spec, questions, CANVAS, batch_size, 1.0, seed)]

    assert drawn(3, 4) == drawn(3, 1)
    assert drawn(3, 4) != drawn(9, 4)
    assert len(set(drawn(3, 4))) == 4, "each sample draws for itself"


# Analysis


def test_edited_places_are_reported_of_tasks_that_edit_anywhere():
    samples = make_samples("remove_random", 8)
    first = {sample.prompt: " ".join(sample.problem.items[1:]) for sample in samples}
    uniform = {
        sample.prompt: " ".join(item for at, item in enumerate(sample.problem.items) if at != place // 4)
        for place, sample in enumerate(samples)
    }
    for responses, bits in ((first, 0), (uniform, 1)):
        report = suite.run_suite(Recording(responses), ENTRANTS[:1], ["remove_random"], samples=8, canvas=CANVAS)
        row = report.rows[0]
        assert row.accuracy == 1
        assert row.edit_bits == pytest.approx(bits)
        assert row.most_edit_bits == pytest.approx(sum(map(math.log2, (3, 4, 5, 6))) / 4)
        assert report.metrics_table()[1][3:] == [
            "edited places, bits",
            f"{row.edit_bits:.2f} of {row.most_edit_bits:.2f}",
        ]
        assert report.rows[-1].edit_bits is None, "not of all tasks together"


def test_the_analysis_is_run_where_asked_for(monkeypatch):
    point = OraclePoint("copy", 4, "surest first", "1", 9, 1.0, 1.0, 0.1, 1.0, 0.0, None)
    asked = []
    monkeypatch.setattr(suite, "oracle_curve", lambda **settings: asked.append(settings) or [point])
    lm = Recording({sample.prompt: sample.answer for sample in make_samples("copy", 1, seed=3)})
    report = suite.run_suite(lm, ENTRANTS[:1], ["copy"], samples=1, canvas=CANVAS, seed=3, analysis=True)
    assert asked == [{"seed": 3}]
    assert report.as_dict()["oracle"][0]["series"] == "surest first"
    assert report.oracle_table()[1][0] == "copy"
    again = suite.run_suite(lm, ENTRANTS[:1], ["copy"], samples=1, canvas=CANVAS, seed=3)
    assert again.oracle == []
    assert len(asked) == 1


def test_by_default_the_tasks_of_one_token_words_are_run():
    from decodery.evaluation.parallelbench.questions import tasks_to_run

    assert tasks_to_run((), None) == (list(TASKS), [])
    assert tasks_to_run(("copy",), None) == (["copy"], [])


# Entrants and progress


def test_the_full_grid_is_the_published_one():
    full = suite.default_entrants(full=True)
    settings = {
        series: [entrant.setting for entrant in full if entrant.series == series] for series in ("threshold", "factor")
    }
    assert settings == {
        "threshold": ["0.5", "0.6", "0.7", "0.8", "0.9", "1"],
        "factor": ["0.7", "1", "1.3", "1.6", "1.9"],
    }
    assert [entrant.threshold for entrant in full if entrant.series == "threshold"] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for rule in ("random", "topk_margin", "entropy"):
        specs = [entrant.on(16) for entrant in full if entrant.series == f"{rule}, tokens per step"]
        assert specs == [f"masked-diffusion(rule={rule}, steps={steps})" for steps in (16, 8, 4, 2)]
    for block in (4, 8):
        specs = [entrant.on(16) for entrant in full if entrant.series == f"blocks of {block}, tokens per step"]
        assert specs == [f"masked-diffusion(block_length={block}, steps={steps})" for steps in (16, 8, 4)]
    few = suite.default_entrants()
    assert [entrant.setting for entrant in few if entrant.series == "factor"] == ["0.7", "1", "1.6"]
    assert [entrant.setting for entrant in few if entrant.series == "threshold"] == ["0.5", "0.7", "0.9"]


def test_progress_counts_every_entrant_on_every_task():
    samples = [sample for task in ("copy", "sort", "reverse") for sample in make_samples(task, 1)]
    told = []
    suite.run_suite(
        Recording({sample.prompt: sample.answer for sample in samples}),
        ENTRANTS,
        ["copy", "sort", "reverse"],
        samples=1,
        canvas=CANVAS,
        on_progress=lambda *step: told.append(step),
    )
    assert told == [("parallelbench", done, 6) for done in range(7)]


def test_a_row_holds_means_of_samples_and_ratios_of_sums():
    outcomes = [suite.SampleOutcome(1.0, "", 3, 8, 2, 20), suite.SampleOutcome(0.0, "", 9, 8, 4, 31)]
    row = suite._row(ENTRANTS[0], "copy", outcomes, 4.0, 8.0)
    assert (row.samples, row.accuracy) == (2, 0.5)
    assert (row.tokens_per_forward, row.content_per_forward) == (16 / 6, 12 / 6)
    assert (row.forwards, row.token_forwards) == (3, 25.5)
    assert (row.tokens_per_second, row.speed_up) == (3, 2)
    untimed = suite._row(ENTRANTS[0], "copy", outcomes, 0.0, 0.0)
    assert (untimed.tokens_per_second, untimed.speed_up) == (0, 0)


def test_the_canvas_that_was_used_is_told():
    made = [item for task in ("waiting_line_copy", "sudoku_n4") for item in make_items(task, 1)]
    assert suite._canvases([suite.questions_of("copy", 1), suite.questions_of("sudoku", 1)]) == (
        "16, answers of several lines 32"
    )
    assert [suite.questions_of(task, 1).canvas for task in ("copy", "sudoku", "paraphrase")] == [16, 32, 16]
    published = [suite.questions_of(item.task, 1) for item in made]
    assert suite._canvases(published) == "32, 64 by task"
    assert suite._canvases([*published, suite.questions_of("copy", 1)]) == "16, 32, 64 by task"


def test_the_default_curve_is_over_one_two_four_and_eight_tokens_a_step():
    reference = [entrant for entrant in suite.default_entrants() if entrant.series == suite.REFERENCE_SERIES]
    assert [(entrant.setting, entrant.per_step) for entrant in reference] == [("1", 1), ("2", 2), ("4", 4), ("8", 8)]
