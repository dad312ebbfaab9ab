"""decodery race: an honest clock, a fair start, and what is said about the outputs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from decodery.cli import race
from decodery.cli.race import Lane


def lane(events: Iterator[Any] | None = None, **changes: Any) -> Lane:
    return Lane(**{"title": "t", "method": "m", "exactness": "approximate", "events": events or iter(()), **changes})


def lanes(plain: list[int], other: list[int], exactness: str = "identical-to-sampling") -> list[Lane]:
    return [lane(token_ids=plain), lane(token_ids=other, exactness=exactness)]


class TestClock:
    def test_runs_in_own_turns_only(self) -> None:
        from decodery.engine.events import Token

        def events() -> Iterator[Token]:
            for place in range(3):
                time.sleep(0.01)
                yield Token(0, place, 65, "a", False)

        one = lane(events())
        one.take_turn(0.001)  # at least one event, however long it takes
        assert one.token_ids == [65]
        before = one.seconds
        assert before >= 0.01
        time.sleep(0.05)
        one.take_turn(0.001)
        assert one.seconds - before < 0.05

    def test_a_turn_ends_after_its_time(self) -> None:
        from decodery.engine.events import Token

        def events() -> Iterator[Token]:
            place = 0
            while True:
                time.sleep(0.002)
                yield Token(0, place, 65, "a", False)

        one = lane(events())
        one.take_turn(0.02)
        assert 1 < len(one.token_ids) <= 10

    def test_failure_of_a_request_is_raised(self) -> None:
        from decodery.engine.events import Finished
        from decodery.engine.statistics import Statistics

        def events() -> Iterator[Finished]:
            yield Finished(0, "", "error", Statistics())
            raise RuntimeError("no memory left")

        with pytest.raises(RuntimeError, match="no memory left"):
            lane(events()).take_turn(1.0)


class TestVerdict:
    def test_identical(self) -> None:
        assert "identical, all 2 tokens" in race._verdict(lanes([1, 2], [1, 2]), "float32", {"temperature": 0}).plain

    @pytest.mark.parametrize(
        ("dtype", "temperature", "exactness", "told"),
        [
            ("bfloat16", 0.0, "identical-to-sampling", "--dtype float32"),
            ("float32", 0.0, "identical-to-sampling", "please report"),
            ("float32", 0.0, "quality-changing", "is quality-changing"),
            ("float32", 1.0, "identical-to-sampling", "two samples of the same law"),
            ("float32", 1.0, "greedy-identical", "greedy decoding only"),
        ],
    )
    def test_different(self, dtype: str, temperature: float, exactness: str, told: str) -> None:
        text = race._verdict(lanes([1, 2, 3], [1, 5, 3], exactness), dtype, {"temperature": temperature}).plain
        assert "differ from token 2 on" in text
        assert told in text

    def test_shorter_output_differs_at_its_end(self) -> None:
        assert race._first_difference(lanes([1, 2, 3], [1, 2])) == 2


class TestRace:
    def test_both_are_told_and_compared(self, command: Any, toy: Any) -> None:
        result = command("race", "Hello", "--max-new-tokens", "30")
        text = toy.chat("Hello", max_new_tokens=30).text
        assert (result.code, result.err) == (0, "")
        assert f"--- plain decoding\n{text}\n" in result.out
        assert f"--- cascade\n{text}\n" in result.out
        assert "The outputs are identical, all 30 tokens." in result.out
        assert "tokens per forward" in result.out
        assert f"{toy.name} in float32 on " in result.out

    def test_json(self, command: Any, toy: Any) -> None:
        result = command("race", "Hello", "--json", "--max-new-tokens", "10", "--method", "prompt-lookup")
        value = json.loads(result.out)
        assert list(value) == [
            "prompt", "model", "dtype", "device", "hardware", "threads", "versions", "seed", "max_new_tokens", "temperature",
            "runs", "speed_up", "identical", "first_difference",
        ]  # fmt: skip
        assert [run["method"] for run in value["runs"]] == ["autoregressive", "prompt-lookup"]
        assert value["identical"] is True
        assert value["first_difference"] is None
        for run in value["runs"]:
            assert run["stats"]["tokens_per_second"] == pytest.approx(10 / run["stats"]["seconds"])
        plain, other = value["runs"]
        assert value["speed_up"] == pytest.approx(plain["stats"]["seconds"] / other["stats"]["seconds"])

    def test_without_a_prompt_there_are_several(self, command: Any, toy: Any) -> None:
        said = command("race", "--max-new-tokens", "12")
        assert (said.code, said.err) == (0, "")
        for label, prompt in race.DEFAULT_PROMPTS.items():
            assert prompt.splitlines()[0] in said.out
            assert f"{label}: The outputs are identical" in said.out
        assert "all of them" in said.out

    def test_several_in_json(self, command: Any, toy: Any) -> None:
        value = json.loads(command("race", "--json", "--max-new-tokens", "12").out)
        assert [one["prompt"] for one in value["races"]] == list(race.DEFAULT_PROMPTS.values())
        seconds = [sum(one["runs"][lane]["stats"]["seconds"] for one in value["races"]) for lane in (0, 1)]
        assert value["speed_up"] == pytest.approx(seconds[0] / seconds[1])

    @pytest.mark.parametrize(("seconds", "said"), [(1.0, True), (0.9, False)])
    def test_drafts_that_do_not_pay_are_said_not_to(
        self, seconds: float, said: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from rich.console import Console

        both = [lane(token_ids=[1, 2], seconds=1.0, title="plain"), lane(token_ids=[1, 2], seconds=seconds, title="m")]
        written = io.StringIO()
        described = {"dtype": "float32", "model": "toy", "device": "cpu", "hardware": "h", "threads": 1}
        race._summary(Console(file=written), {"": both}, described, {"temperature": 0.0})
        assert ("no faster than plain decoding" in " ".join(written.getvalue().split())) is said

    def test_several_races_count_as_one(self) -> None:
        first, second = lane(token_ids=[1, 2], seconds=1.0), lane(token_ids=[3], seconds=2.0)
        first.stats, second.stats = {"forwards": 2}, {"forwards": 1}
        joined = race._joined([first, second])
        assert (joined.token_ids, joined.seconds, joined.stats["forwards"]) == ([1, 2, 3], 3.0, 3)
        assert joined.stats["acceptance_length"] == 1.0

    def test_nothing_learned_in_the_warm_up_is_known_in_the_race(
        self, command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known: list[list[Any]] = []
        stream = toy.stream

        def watched(*arguments: Any, **settings: Any) -> Any:
            known.append(list(toy.memory))
            return stream(*arguments, **settings)

        monkeypatch.setattr(toy, "stream", watched)
        assert command("race", "Hello", "--max-new-tokens", "10").code == 0
        assert known == [[], []]

    def test_on_a_terminal_both_stand_side_by_side(
        self, command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rich.console import Console

        written = io.StringIO()
        monkeypatch.setattr(race, "output", lambda: Console(file=written, force_terminal=True, width=100, height=30))
        assert command("race", "Hello", "--max-new-tokens", "20").code == 0
        assert "plain decoding" in written.getvalue()
        assert "tokens/s" in written.getvalue()
        assert "this shade" in written.getvalue()

    def test_interruption(self, command: Any, interrupted: Any) -> None:
        assert command("race", "Hello", "--max-new-tokens", "20").code == 130

    def test_refused(self, command: Any, toy: Any) -> None:
        result = command("race", "Hello", "--method", "nothing")
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
