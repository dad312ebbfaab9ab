"""The race against other engines: the protocol with a worker made for the test, the order of turns, ratios, files."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from engines import environments, model_files, worker
from engines.entrants import CASCADE, ENGINES, INTEGER, PLAIN, Entrant, entrants, plans
from engines.environments import Environment, SetupFailed, Step, prepare
from engines.model_files import ModelFiles, find
from engines.race import Group, Race, Record, groups_of, same
from engines.ratios import Ratio, rate, rates, ratio
from engines.report import Report
from engines.worker import SCRIPTS, EngineFailed, Worker

from decodery.evaluation import experiment_files

FAKE = f"""
import os
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from lines import Answer, Engine, serve

class Counting(Engine):
    packages = ("pip",)

    def load(self, settings):
        print("what a library prints")
        os.write(1, b"even past Python")
        self.step = settings["step"]
        self.asked = []
        return {{"step": self.step, "path": os.environ.get("PYTHONPATH", "")}}

    def generate(self, ask):
        self.asked.append(ask.session)
        first = ask.prompts[0][0]
        if first == 13:
            raise ValueError("thirteen is\\nnot decoded")
        if first == 14:
            os._exit(7)
        length = ask.new_tokens - (first == 15)
        told = {{"asked": self.asked, "way": ask.way}}
        return Answer([[p[-1] + self.step * i for i in range(1, length + 1)] for p in ask.prompts], 0.25, told)

serve(Counting())
"""


@pytest.fixture
def start(tmp_path):
    """Makes workers that count up by a step, and ends them."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE)
    made = []

    def build(step: int = 1) -> Worker:
        made.append(Worker(f"fake {step}", Path(sys.executable), script, tmp_path / "logs" / f"{len(made)}.log"))
        reply = made[-1].load({"step": step})
        assert reply["settings"] == {"step": step, "path": ""}  # our own PYTHONPATH is no concern of theirs
        assert list(reply["versions"]) == ["pip"]
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.fixture
def foreign_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")


def _state(fake: Worker) -> str:
    return Path(f"/proc/{fake._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.usefixtures("foreign_path")
def test_a_worker_answers_and_stands_still_in_between(start):
    fake = start(2)
    turn = fake.generate([[5], [1, 9]], 3, way="counting", session="one")
    assert turn.tokens == [[7, 9, 11], [11, 13, 15]]
    assert turn.new_tokens == 6
    assert 0 < turn.seconds < 5
    assert turn.first_token_seconds == 0.25
    assert turn.told == {"asked": ["one"], "way": "counting"}
    deadline = time.monotonic() + 20
    while _state(fake) != "T" and time.monotonic() < deadline:  # the signal takes a moment to arrive
        time.sleep(0.01)
    assert _state(fake) == "T"
    assert fake.generate([[5]], 1, session="two").told["asked"] == ["one", "two"]  # awake again, and the same process


def test_a_worker_ends_with_the_race(start, tmp_path):
    """Also where the race is killed while the worker stands still."""
    start()  # writes the script of the worker
    code = f"""
import sys, time
sys.path[:0] = {[str(SCRIPTS.parents[1])]!r}
from pathlib import Path
from engines.worker import Worker
fake = Worker("fake", Path(sys.executable), Path({str(tmp_path / "fake_worker.py")!r}), Path({str(tmp_path / "log")!r}))
fake.load({{"step": 1}})
print(fake._process.pid, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _lives(number) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _lives(number)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_end_tokens_cut_all_answers_alike(start):
    fake = start()
    assert fake.generate([[5], [7]], 4, ends=[8]).tokens == [[6, 7, 8], [8]]


def test_what_fails_is_one_sentence(start):
    fake = start()
    with pytest.raises(EngineFailed, match="ValueError: thirteen is not decoded"):
        fake.generate([[13]], 4)
    assert fake.generate([[1]], 2).tokens == [[2, 3]]  # an error is no end
    with pytest.raises(EngineFailed, match=r"gave \[3\] tokens where 4 were asked for"):
        fake.generate([[15]], 4)
    with pytest.raises(EngineFailed, match="ended with code 7"):
        fake.generate([[14]], 4)


def test_a_worker_that_is_too_late_is_given_up(start, monkeypatch):
    fake = start()
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.0)
    with pytest.raises(EngineFailed, match="did not answer"):
        fake.generate([[1]], 2)


def _race(start, steps: dict[str, int], groups: list[Group], **more) -> Race:
    workers = {name: start(step) for name, step in steps.items()}
    return Race([Entrant(name, name, "", "bf16") for name in steps], workers, groups, 4, **more)


def test_everybody_takes_a_turn_on_every_group(start):
    groups = [Group(((1,),), ("a",)), Group(((3,),), ("b",)), Group(((1,), (5,)), ("a", "b"))]
    race = _race(start, {PLAIN: 1, "other": 2}, groups)
    race.entrants += [Entrant("alone", "other", "", "bf16", 1), Entrant("once", "other", "", "bf16", None, 1)]
    seen = []
    race.warm_up(lambda text: None)
    race.run(2, lambda text: None, seen.append)
    assert seen == [0, 1]
    counts = {name: sum(r.entrant == name for r in race.records) for name in (PLAIN, "other", "alone", "once")}
    assert counts == {PLAIN: 6, "other": 6, "alone": 4, "once": 3}
    assert {r.identical for r in race.records if r.entrant == PLAIN} == {1.0}
    assert {r.identical for r in race.records if r.entrant == "other"} == {0.0}
    sessions = next(r.told["asked"] for r in reversed(race.records) if r.entrant == PLAIN)
    assert sessions[2:] == [  # after the two of warming up
        *("round 0, batches of 1", "round 0, batches of 1", "round 0, batches of 2"),
        *("round 1, batches of 1", "round 1, batches of 1", "round 1, batches of 2"),
    ]
    assert all(r.new_tokens == 4 * r.batch for r in race.records)


def test_who_fails_is_left_out_with_all_its_turns(start):
    groups = [Group(((1,),), ("a",)), Group(((13,),), ("b",))]
    race = _race(start, {PLAIN: 1, "other": 2}, groups[:1])
    race.run(1, lambda text: None, lambda number: None)
    assert {record.entrant for record in race.records} == {PLAIN, "other"}
    race.workers["other"]._process.kill()
    race.run(1, lambda text: None, lambda number: None)
    assert {record.entrant for record in race.records} == {PLAIN}
    assert "ended with code -9" in race.failures["other"]
    race.groups = groups
    with pytest.raises(EngineFailed):  # without plain decoding there is nothing to compare with
        race.run(1, lambda text: None, lambda number: None)


def test_sharing_a_beginning():
    assert same([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert same([1, 2, 9, 4], [1, 2, 3, 4]) == 0.5
    assert same([1, 2], [1, 2, 3, 4]) == 0.5
    assert same([9], [1, 2]) == 0


def test_groups_hold_no_prompt_twice():
    prompts = [(str(number), [number]) for number in range(19)]
    found = groups_of(prompts, 5, [1, 8])
    assert [group.batch for group in found] == [1] * 5 + [8]
    assert found[-1].prompts == tuple((number,) for number in range(8))
    found = groups_of(prompts, 17, [8])
    assert len(found) == 2  # the third would be incomplete
    assert len({prompt for group in found for prompt in group.prompts}) == 16
    with pytest.raises(ValueError, match="too few"):
        groups_of(prompts[:5], 5, [8])


def _record(entrant: str, rate: float, group: int = 0, round: int = 0, batch: int = 1, **more) -> Record:
    return Record(entrant, batch, group, round, 100, 100 / rate, 1.0, **more)


def test_ratios_pair_groups_and_rounds():
    records = [_record("ours", rate, group, number) for group, number, rate in [(0, 0, 40), (0, 1, 44), (0, 2, 90)]]
    records += [_record("theirs", 20, 0, number) for number in range(3)]
    records += [_record("ours", 80, 1, number) for number in range(3)]
    records += [_record("theirs", 10, 1, number) for number in range(3)]
    ours, theirs = rates(records, "ours", 1), rates(records, "theirs", 1)
    found = ratio(ours, theirs)
    assert found is not None
    assert found.value == pytest.approx((44 / 20 * 8) ** 0.5)  # medians over rounds, geometric over groups
    assert found.low == pytest.approx(2.2)
    assert found.high == pytest.approx(8)
    assert found.least == pytest.approx((40 / 20 * 8) ** 0.5)
    assert found.most == pytest.approx((90 / 20 * 8) ** 0.5)
    assert rate(theirs) == pytest.approx(2 / (1 / 20 + 1 / 10))
    inverse = ratio(theirs, ours)
    assert inverse is not None
    assert inverse.value == pytest.approx(1 / found.value)
    # One round of theirs alone is compared with the same round of ours.
    first = ratio(ours, {0: {2: 30.0}})
    assert first == Ratio(*[pytest.approx(3)] * 5)
    assert ratio(ours, {7: {0: 1.0}}) is None


def test_the_report_tells_targets_limits_and_failures():
    entrants = [Entrant(name, "decodery", "", "bf16") for name in (PLAIN, CASCADE, INTEGER)]
    entrants += [Entrant(name, "other", "", "bf16") for name in ("vLLM", "llama.cpp BF16")]
    group = Group(((1,) * 50,), ("qa",))
    records = [
        _record(PLAIN, 50, first_token_seconds=1.0),
        _record(CASCADE, 100, told={"rounds": 40}),
        _record(INTEGER, 200),
        _record("vLLM", 25),
        _record("llama.cpp BF16", 60),
    ]
    loaded = {
        "decodery": {"versions": {"decodery": "1"}, "settings": {"weight_bytes": 9_000, "cache_bytes_per_token": 10}}
    }
    report = Report(entrants, [group], records, [{"sum": 2e6, "copy": 1e6}], loaded, {"OpenVINO bf16": "not here."})
    report.told = dict.fromkeys(
        ("model", "hardware", "threads", "prompts", "new_tokens", "rule", "rounds", "date"), "x"
    )
    reached = {(t["ours"], t["theirs"]): (t["ratio"].value, t["reached"]) for t in report.targets()}
    assert reached == {
        (CASCADE, "vLLM"): (pytest.approx(4), True),
        (INTEGER, "vLLM"): (pytest.approx(8), True),
        (CASCADE, "llama.cpp BF16"): (pytest.approx(100 / 60), False),
    }
    (limit,) = report.limits()
    assert limit["tokens_per_second"] == pytest.approx(99 / (2 - 1))
    assert limit["limit_tokens_per_second"] == pytest.approx(2e6 / (9_000 + 100 * 10))
    assert limit["share_of_limit"] == pytest.approx(99 / 200)
    text = report.markdown()
    assert "| decodery cascade | vLLM | 1 | 3.5x | 4.00x [4.00, 4.00] | 4.00 to 4.00 | yes |" in text
    assert "**no**" in text
    assert "50% of the limit" in text
    assert "left out: OpenVINO bf16: not here." in text
    report.told["made"] = {"commit": "0" * 40, "changed": False, "date": "2026-01-01", "processor": "p", "cores": 2}
    report.told["command"] = "run.py"
    tables = json.loads(json.dumps(report.tables()))
    assert set(tables) == {"alone", "targets"}
    page = experiment_files.markdown("engines", "alone", tables["alone"])
    assert "| `vLLM` | bf16 | 25.0 | 4.00x | 8.00x |  | 100% |" in page
    page = experiment_files.markdown("engines", "targets", tables["targets"])
    assert "| `decodery cascade` | vLLM | 3.5x, 1 at a time | 4.00x | yes |" in page
    again = json.loads(json.dumps(report.as_dict()))
    assert again["rows"]["1"][1]["tokens_per_round"] == 2.5
    assert again["targets"][0]["ratio"]["value"] == pytest.approx(4)


def test_every_entrant_has_a_process_and_every_process_a_script(tmp_path):
    files = ModelFiles("tiny", tmp_path, tmp_path / "tiny.gguf", tmp_path)
    made = plans(files, tmp_path, ENGINES, threads=2, context=256, batches=[1, 8])
    assert {entrant.worker for entrant in entrants()} == {plan.name for plan in made}
    assert all((SCRIPTS / plan.script).is_file() for plan in made)
    known = environments.environments()
    assert {plan.engine for plan in made} - set(known) == {"decodery"}
    assert {plan.settings["threads"] for plan in made} == {2}
    assert {plan.variables["OMP_NUM_THREADS"] for plan in made} == {"2"}
    assert {plan.engine for plan in plans(files, tmp_path, ["vllm"], threads=1, context=9, batches=[1])} == {"vllm"}


def test_an_interrupted_setup_goes_on_where_it_stopped(tmp_path, monkeypatch):
    wanted = Environment("made", (Step(("one==1",)), Step(("--no-deps", "two==2"), {"FLAG": "on"})), "import two")
    calls: list[tuple[str, ...]] = []
    broken = {"two==2"}

    def command(words, log, label, variables=None):
        if "venv" in words:
            python = environments.python_of(tmp_path, "made")
            python.parent.mkdir(parents=True)
            python.touch()
        calls.append((words[-1], *(variables or {})))
        if words[-1] in broken:
            raise SetupFailed("two is not to be had")

    monkeypatch.setattr(environments, "command", command)
    with pytest.raises(SetupFailed, match="not to be had"):
        prepare(wanted, tmp_path)
    assert calls == [(str(tmp_path / "made"),), ("one==1",), ("two==2", "FLAG")]
    broken.clear()
    calls.clear()
    prepare(wanted, tmp_path)
    assert calls == [("two==2", "FLAG"), ("import two",)]
    calls.clear()
    prepare(wanted, tmp_path)
    assert calls == []


def test_a_failed_step_is_told_with_its_last_error(tmp_path):
    script = "print('ERROR: no such package'); print('bye'); raise SystemExit(3)"
    with pytest.raises(SetupFailed, match=r"the step failed with code 3 .ERROR: no such package"):
        environments.command([sys.executable, "-c", script], tmp_path / "log", "the step")


def test_other_engines_get_the_weights_in_a_checkpoint_of_their_kind(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "models")
    import tiny_gguf

    vocabulary = tiny_gguf.byte_level()
    weights = tiny_gguf.write(tmp_path / "tiny.gguf", vocabulary)
    found = find(str(tmp_path / "tiny.gguf"), tmp_path / "bench")
    state = AutoModelForCausalLM.from_pretrained(found.checkpoint, dtype="auto").state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert len(AutoTokenizer.from_pretrained(found.checkpoint)) == len(vocabulary.tokens)
    made = (found.checkpoint / "model.safetensors").stat().st_mtime_ns
    find(str(tmp_path / "tiny.gguf"), tmp_path / "bench")
    assert (found.checkpoint / "model.safetensors").stat().st_mtime_ns == made
    tiny_gguf.write(tmp_path / "tiny.gguf", vocabulary, seed=1)
    find(str(tmp_path / "tiny.gguf"), tmp_path / "bench")
    assert (found.checkpoint / "model.safetensors").stat().st_mtime_ns != made


@pytest.mark.parametrize("kind", ["BF16", "Q4_0"])
def test_gguf_files_keep_everything_but_the_form_of_weights(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGMLQuantizationType
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_file_type(3)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_token_list(["a", "ü", "<end>"])
    writer.add_token_types([1, 1, 3])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("norm", rows[0])
    writer.add_tensor("matrix", gguf.quantize(rows, kinds.Q4_1), raw_dtype=kinds.Q4_1)
    writer.add_tensor("head", gguf.quantize(rows, kinds.Q8_0), raw_dtype=kinds.Q8_0)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    model_files.rewrite(source, target, kind)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(target)
    for key, entry in before.fields.items():
        if key != "general.file_type" and not key.startswith("GGUF."):
            assert after.fields[key].contents() == entry.contents(), key
            assert after.fields[key].types == entry.types
    assert after.fields["general.file_type"].contents() == model_files.FILE_TYPES[kind]
    assert not list(tmp_path.glob("*.partial"))
    old, new = ({t.name: t for t in reader.tensors} for reader in (before, after))
    assert list(old) == list(new)
    assert new["norm"].tensor_type == kinds.F32
    np.testing.assert_array_equal(new["norm"].data, rows[0])
    assert new["matrix"].tensor_type == kinds[kind]
    assert new["head"].tensor_type == (kinds.BF16 if kind == "BF16" else kinds.Q8_0)
    assert list(new["matrix"].shape) == list(old["matrix"].shape)
    values = gguf.dequantize(old["matrix"].data, kinds.Q4_1)
    again = gguf.dequantize(new["matrix"].data, kinds[kind])
    if kind == "BF16":  # half a unit in the last of eight bits
        np.testing.assert_allclose(again, values, rtol=2**-8)
        head = gguf.dequantize(new["head"].data, kinds.BF16)
        np.testing.assert_allclose(head, gguf.dequantize(old["head"].data, kinds.Q8_0), rtol=2**-8)
    else:
        assert np.abs(again - values).max() <= np.abs(values).max() / 8
        np.testing.assert_array_equal(new["head"].data, old["head"].data)
