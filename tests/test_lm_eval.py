"""lm_eval on decodery, in process and over HTTP: log likelihoods are transformers' own, and what a method costs is told.

Skips where lm_eval is not installed: pip install "decodery[lm-eval]". Nothing is fetched: the tasks are written here.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, reference_logits

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
lm_eval = pytest.importorskip("lm_eval")

import decodery  # noqa: E402
from decodery.diffusion.likelihood_bound import likelihood_bound  # noqa: E402
from decodery.errors import BadPrompt, BadSetting  # noqa: E402
from decodery.integrations.lm_eval import DecoderyLM, main  # noqa: E402
from decodery.testing import toy_diffusion_model  # noqa: E402

DOCUMENTS = [
    {"text": "the quick brown", "choices": [" fox", " dog", " fox jumps over the lazy dog"], "answer": 0},
    {"text": "the lazy", "choices": [" dog", " fox; größer", " 東京"], "answer": 2},
    {"text": "", "choices": ["the", "stop", "story"], "answer": 1},
    {"text": "the end of ", "choices": ["the story", "the"], "answer": 1},
]
TASKS = {
    "tiny_choice": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    "tiny_text": "output_type: loglikelihood_rolling\ndoc_to_target: '{{text}} brown fox jumps over the lazy dog 東京 stop'\n"
    "metric_list: [{metric: bits_per_byte}]\n",
    "tiny_reply": "output_type: generate_until\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {until: ['. ', 'zz'], max_gen_toks: 12}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
}
STOP = [". ", "zz"]
QUESTIONS = {"tiny_choice": "{{text}}", "tiny_text": "", "tiny_reply": "{{text}} stop"}
BOUND = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that transformers and decodery read."""
    where = tmp_path_factory.mktemp("model") / "tiny"
    make_model("llama", vocab_size=330, eos_token_id=0).save_pretrained(where)
    byte_level_tokenizer().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lm_eval's manager of our tasks, and of no others."""
    where = tmp_path_factory.mktemp("tasks")
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    data = where / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)), "utf-8")
    for name, said in TASKS.items():
        dataset = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\ntest_split: test\n"
        )
        question = f"target_delimiter: ''\ndoc_to_text: '{QUESTIONS[name]}'\n"
        (where / f"{name}.yaml").write_text(f"task: {name}\n{dataset}{question}{said}", "utf-8")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(where), include_defaults=False)
    manager.folder = where
    return manager


def evaluated(model: Any, tasks: Any, names: Any = tuple(TASKS), **more: Any) -> Any:
    return lm_eval.simple_evaluate(model, tasks=list(names), task_manager=tasks, bootstrap_iters=0, **more)


def answers(results: Any, name: str) -> list[Any]:
    """What a model said to each request of a task, by document."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for answer in sample["resps"]]


def numbers(results: Any, name: str) -> list[float]:
    return [
        float(answer[0][0] if isinstance(answer[0], list | tuple) else answer[0]) for answer in answers(results, name)
    ]


def flags(results: Any, name: str) -> list[bool]:
    return [str(answer[0][1]) == "True" for answer in answers(results, name)]


@pytest.fixture(scope="module")
def ours(folder: Path, tasks: Any) -> Any:
    return evaluated(
        "decodery", tasks, model_args={"pretrained": str(folder), "method": "prompt-lookup", "dtype": "float32"}
    )


def test_the_log_likelihoods_are_those_of_lm_evals_own_model(folder: Path, tasks: Any, ours: Any) -> None:
    """Of every continuation, of whole texts, and which of them greedy decoding gives; and all texts are the same."""
    theirs = evaluated(
        "hf", tasks, model_args={"pretrained": str(folder), "dtype": "float32"}, device="cpu", batch_size=1
    )
    for name in ("tiny_choice", "tiny_text"):
        assert numbers(ours, name) == pytest.approx(numbers(theirs, name), abs=BOUND)
    assert flags(ours, "tiny_choice") == flags(theirs, "tiny_choice")
    assert answers(ours, "tiny_reply") == answers(theirs, "tiny_reply")
    for name in TASKS:
        told, known = ours["results"][name], theirs["results"][name]
        for metric in ("acc,none", "bits_per_byte,none"):
            assert told.get(metric) == pytest.approx(known.get(metric), abs=1e-3)


def test_they_are_those_of_score_and_of_transformers(folder: Path, ours: Any) -> None:
    lm = decodery.load(folder, dtype="float32")
    ids = lm.tokenize("the quick brown")
    law = reference_logits(make_model("llama", vocab_size=330, eos_token_id=0), lm.tokenize("the quick brown fox"))
    rows = law.log_softmax(-1)[len(ids) - 1 : -1]
    by_hand = float(rows.gather(1, torch.tensor(lm.encode(" fox"))[:, None]).sum())
    first = numbers(ours, "tiny_choice")[0]
    assert first == pytest.approx(by_hand, abs=BOUND)
    assert first == pytest.approx(lm.score(" fox", "the quick brown").log_probability, abs=BOUND)


def test_what_was_decoded_is_told(folder: Path, ours: Any) -> None:
    told = ours["config"]["decodery"]
    assert (told["method"], told["exactness"]) == ("prompt-lookup", "identical-to-plain")
    assert told["log_likelihood"] == "exact"
    assert told["tasks"]["tiny_choice"] == {"requests": 11}
    spent = told["tasks"]["tiny_reply"]
    lm = decodery.load(folder, dtype="float32", fast="exact")
    alone = [lm.generate(f"{one['text']} stop", "prompt-lookup", max_new_tokens=12, stop=STOP) for one in DOCUMENTS]
    assert (spent["requests"], spent["tokens"]) == (4, sum(len(one.token_ids) for one in alone))
    assert 0 < spent["forwards"] <= spent["tokens"]  # how much is drafted is decided by measured times
    assert spent["tokens_per_forward"] == spent["tokens"] / spent["forwards"]
    assert [answer[0] for answer in answers(ours, "tiny_reply")] == [one.text for one in alone]


def test_over_http_it_is_the_same(folder: Path, tasks: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    from serving_models import serving

    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def load(name: str, **options: Any) -> Any:
        return decodery.load(folder, dtype="float32")

    with serving(load, models=("tiny",)) as server:
        arguments = {
            "model": "tiny",
            "base_url": f"{server.address}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(folder),
            "max_length": 256,
            "max_retries": 1,
        }
        remote = {**arguments, "tokenizer_backend": "remote"}  # asks the server itself for tokens
        for told, batch_size, names in (
            (arguments, 1, tuple(TASKS)),
            (arguments, 3, ("tiny_choice",)),
            (remote, 2, tuple(TASKS)),
        ):
            found = evaluated("local-completions", tasks, names, model_args=told, batch_size=batch_size)
            assert numbers(found, "tiny_choice") == pytest.approx(numbers(ours, "tiny_choice"), abs=BOUND)
            assert flags(found, "tiny_choice") == flags(ours, "tiny_choice")
            if len(names) > 1:
                assert numbers(found, "tiny_text") == pytest.approx(numbers(ours, "tiny_text"), abs=BOUND)
                assert answers(found, "tiny_reply") == answers(ours, "tiny_reply")
        more = {"gen_kwargs": "method=prompt-lookup,temperature=0"}
        found = evaluated("local-completions", tasks, ("tiny_reply",), model_args=remote, **more)
        assert answers(found, "tiny_reply") == answers(ours, "tiny_reply")
        server.wait_idle()
        labels = {"model_name": "tiny", "method": "prompt-lookup", "finished_reason": "length"}
        assert server.service.metrics.registry.get_sample_value("vllm:request_success_total", labels) == len(DOCUMENTS)


class Asked:
    """A request, as lm_eval makes them."""

    def __init__(self, *arguments: Any, task: str = "t"):
        self.args, self.task_name = arguments, task


@pytest.fixture
def canvas() -> DecoderyLM:
    return DecoderyLM(toy_diffusion_model(1, stop_ids=(5,)), method="masked-diffusion(steps=2)", samples=8)


def test_bounds_are_said_to_be_bounds(caplog: pytest.LogCaptureFixture) -> None:
    lm = toy_diffusion_model(1, stop_ids=(5,))
    with caplog.at_level(logging.WARNING, "decodery"):
        canvas = DecoderyLM(lm, method="masked-diffusion(steps=2)", samples=8, seed=3)
    assert "estimates of lower bounds" in caplog.text
    [(value, greedy)] = canvas.loglikelihood([Asked("abc", "defg")])
    bound = lm.run(likelihood_bound(lm, lm.encode("defg"), lm.encode("abc"), samples=8, seed=3))
    assert value == bound.log_probability
    assert not greedy
    told = canvas.get_model_info()["decodery"]
    assert told["log_likelihood"] == "lower bound, estimated from 8 samples"
    assert told["tasks"] == {"t": {"requests": 1, "bound_forwards": 8}}


def test_greedy_texts_of_a_canvas_are_found(canvas: DecoderyLM) -> None:
    lm = canvas.lm
    text = lm.generate("abc", canvas.method, max_new_tokens=4, temperature=0.0).text
    assert [greedy for _, greedy in canvas.loglikelihood([Asked("abc", text), Asked("abc", text[::-1] + "a")])] == [
        True,
        False,
    ]
    assert canvas.loglikelihood([Asked("abc", text)]) == canvas.loglikelihood([Asked("abc", text)])
    canvas._check_greedy = False
    assert not canvas.loglikelihood([Asked("abc", text)])[0][1]


def test_texts_of_a_canvas(canvas: DecoderyLM) -> None:
    requests = [Asked(context, {"max_gen_toks": 6}) for context in ("abc", "b")]
    assert canvas.generate_until(requests) == [
        canvas.lm.generate(context, canvas.method, max_new_tokens=6, temperature=0.0, seed=i).text
        for i, context in enumerate(("abc", "b"))
    ]
    told = canvas.get_model_info()["decodery"]["tasks"]["t"]
    assert (told["requests"], told["forwards"]) == (2, 4)
    assert told["tokens_per_forward"] == told["tokens"] / 4
    [whole] = canvas.loglikelihood_rolling([Asked("abcdefgh")])
    lm = canvas.lm
    assert whole == lm.run(likelihood_bound(lm, lm.encode("abcdefgh"), samples=8)).log_probability


def test_sampling_long_texts_and_windows(folder: Path) -> None:
    model = DecoderyLM(str(folder), dtype="float32", batch_size=2)
    lm = model.lm
    sampled = model.generate_until([Asked("the", {"do_sample": True, "temperature": 0.9, "max_gen_toks": 8})] * 3)
    assert sampled == [lm.generate("the", temperature=0.9, max_new_tokens=8, seed=i).text for i in range(3)]
    assert len(set(sampled)) > 1
    long = "the quick brown fox jumps over the lazy dog. " * 60
    tokens = lm.tokenize(long)
    assert len(tokens) > lm.network.context
    [text] = model.generate_until([Asked(long, {"max_gen_toks": 8})])
    assert text == lm.generate(tokens[-(lm.network.context - 8) :], max_new_tokens=8).text
    [(value, _)] = model.loglikelihood([Asked(long, " fox")])
    kept = model.tok_encode(long.rstrip() + "  fox")
    count = len(kept) - len(model.tok_encode(long.rstrip()))
    assert value == pytest.approx(
        lm.score(kept[-count:], kept[-lm.network.context : -count]).log_probability, abs=BOUND
    )
    [total] = model.loglikelihood_rolling([Asked(long)])
    size = lm.network.context - 1
    expected = lm.score(tokens[:size], [0]).log_probability
    for start in range(size, len(tokens), size):
        end = min(start + size, len(tokens))
        expected += lm.score(tokens[start:end], tokens[end - size - 1 : start]).log_probability
    assert total == pytest.approx(expected, abs=0.05)


def test_conversations_are_written_by_the_models_template() -> None:
    tokenizer = byte_level_tokenizer()
    written = "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}"
    tokenizer.chat_template = written + "{% if add_generation_prompt %}<user>{% endif %}"
    lm = decodery.wrap(make_model("llama", vocab_size=330, eos_token_id=0), tokenizer, name="tiny")
    model = DecoderyLM(lm)
    talk = [{"role": "user", "content": "the quick"}]
    text = model.apply_chat_template(talk)
    assert text == "<user>the quick<end><user>"
    assert model.tok_encode(text) == list(lm.tokenize(talk))
    assert model.chat_template(True) == tokenizer.chat_template
    begun = [*talk, {"role": "assistant", "content": "brown"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == "<user>the quick<end><user>brown"
    [reply] = model.generate_until([Asked(text, {"max_gen_toks": 6})])
    assert reply == lm.generate(talk, max_new_tokens=6).text


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(BadSetting, match="max_batch_size has no meaning"):
        DecoderyLM(str(folder), max_batch_size=4)
    with pytest.raises(BadSetting, match="batch_size must be a number of prompts or auto, not 'many'"):
        DecoderyLM(str(folder), batch_size="many")
    model = DecoderyLM(str(folder), dtype="float32")
    with pytest.raises(BadSetting, match="context of 512"):
        model.generate_until([Asked("the", {"max_gen_toks": 512})])
    with pytest.raises(BadSetting, match="nonsense"):
        model.generate_until([Asked("the", {"nonsense": 1})])
    with pytest.raises(BadPrompt, match="has no tokens"):
        model.loglikelihood([Asked("the", "")])


def test_the_command(
    folder: Path, tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lm_eval` with the model decodery, which also says a device where nobody does."""
    words = [
        *("lm_eval", "run", "--model", "decodery", "--model_args", f"pretrained={folder},dtype=float32"),
        *("--tasks", "tiny_choice", "--include_path", str(tasks.folder), "--output_path", str(tmp_path / "out.json")),
    ]
    monkeypatch.setattr("sys.argv", words)
    main()
    assert "tiny_choice" in capsys.readouterr().out
    [written] = tmp_path.rglob("*.json")
    assert json.loads(written.read_text())["config"]["decodery"]["log_likelihood"] == "exact"
