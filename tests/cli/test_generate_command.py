"""decodery generate: where prompts come from, what comes out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from beam_search import BeamSearch

from decodery.engine import registry
from decodery.engine.events import Event
from decodery.replies import Stream

KEYS = ["text", "token_ids", "finish_reason", "method", "exactness", "model", "seed", "stats"]
STATISTICS = {
    "prompt_tokens",
    "new_tokens",
    "forwards",
    "rows",
    "drafted",
    "accepted",
    "acceptance_length",
    "first_token_seconds",
    "seconds",
    "tokens_per_second",
    "peak_memory_bytes",
}


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


class TestText:
    def test_streamed_text_equals_the_reply(self, command: Any, toy: Any) -> None:
        result = command("generate", "Once upon a time", "--max-new-tokens", "60")
        assert (result.code, result.err) == (0, "")
        assert result.out == toy.generate("Once upon a time", max_new_tokens=60).text + "\n"

    def test_echo_begins_with_the_prompt(self, command: Any, toy: Any) -> None:
        result = command("generate", "Once", "--echo", "--max-new-tokens", "5")
        assert result.out == toy.generate("Once", echo=True, max_new_tokens=5).text + "\n"
        assert result.out.startswith("Once")

    def test_settings_arrive(self, command: Any, toy: Any) -> None:
        settings = {
            "temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1,
            "presence_penalty": 0.2, "frequency_penalty": 0.1, "seed": 5, "max_new_tokens": 30, "min_new_tokens": 3,
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]
        options += ["--logit-bias", "65=2.5", "--logit-bias", "66=-1", "--stop", "zz", "--stop", "qq", "--ignore-eos"]
        options += ["--stop-token-id", "7", "--session", "mine", "--method", "prompt-lookup"]
        expected = toy.generate(
            "Once", "prompt-lookup", **settings, logit_bias={65: 2.5, 66: -1.0}, stop=("zz", "qq"),
            stop_token_ids=(7,), ignore_eos=True, session="mine",
        )  # fmt: skip
        assert command("generate", "Once", *options).out == expected.text + "\n"

    def test_temperature_zero_is_given_not_missing(self, command: Any, toy: Any) -> None:
        assert command("generate", "a", "--temperature", "0", "--max-new-tokens", "4").code == 0

    @pytest.mark.parametrize("source", ["argument", "file", "pipe", "dash"])
    def test_sources_of_the_prompt(self, command: Any, toy: Any, tmp_path: Path, source: str) -> None:
        file = tmp_path / "prompt.txt"
        file.write_text("Grüße\nan alle\n")
        arguments, stdin = {
            "argument": (["Grüße\nan alle"], ""),
            "file": (["--file", str(file)], ""),
            "pipe": ([], "Grüße\nan alle\n"),
            "dash": (["-"], "Grüße\nan alle\n"),
        }[source]
        result = command("generate", *arguments, "--max-new-tokens", "6", stdin=stdin)
        assert result.out == toy.generate("Grüße\nan alle", max_new_tokens=6).text + "\n"

    def test_chat_and_system(self, command: Any, toy: Any) -> None:
        said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (
            command("generate", "Hi", "--chat", "--max-new-tokens", "9").out
            == toy.chat("Hi", max_new_tokens=9).text + "\n"
        )
        expected = toy.generate(said, max_new_tokens=9).text + "\n"
        assert command("generate", "Hi", "--system", "Be brief.", "--max-new-tokens", "9").out == expected

    def test_several_samples_in_order(self, command: Any, toy: Any) -> None:
        arguments = {"temperature": 1.0, "seed": 3, "max_new_tokens": 20}
        texts = [reply.text for reply in toy.generate("Once", n=3, **arguments)]
        result = command("generate", "Once", "-n", "3", "-t", "1", "--seed", "3", "--max-new-tokens", "20")
        assert result.out == "\n---\n".join(texts) + "\n"

    def test_characters_that_steer_the_terminal_are_harmless_there(self) -> None:
        from decodery.cli.console import visible

        assert visible("a\x1b[2Jb\tc\nd\r\n\x9b\xa0é👩‍🚀") == "a�[2Jb\tc\nd\n�\xa0é👩‍🚀"


class TestJson:
    def test_shape(self, command: Any, toy: Any) -> None:
        (value,) = lines_of(command("generate", "Once", "--json", "--max-new-tokens", "20", "--seed", "9").out)
        reply = toy.generate("Once", max_new_tokens=20, seed=9)
        assert list(value) == KEYS
        assert set(value["stats"]) >= STATISTICS
        assert value["text"] == reply.text
        assert value["token_ids"] == reply.token_ids
        assert value["finish_reason"] == reply.finish_reason
        assert value["method"] == "cascade"
        assert value["exactness"] == "identical-to-plain"
        assert value["model"] == toy.name
        assert value["seed"] == 9
        assert value["stats"]["new_tokens"] == len(reply.token_ids)
        assert value["stats"]["prompt_tokens"] == 4

    def test_a_seed_that_was_drawn_is_named_and_repeats_the_text(self, command: Any, toy: Any) -> None:
        arguments = ("generate", "Once", "--json", "-t", "1.2", "--max-new-tokens", "20")
        (first,) = lines_of(command(*arguments).out)
        (again,) = lines_of(command(*arguments, "--seed", str(first["seed"])).out)
        assert again["text"] == first["text"]

    def test_one_object_per_sample(self, command: Any, toy: Any) -> None:
        values = lines_of(command("generate", "Once", "--json", "-n", "3", "-t", "1", "--max-new-tokens", "5").out)
        assert [list(value) for value in values] == [KEYS] * 3
        assert len({value["text"] for value in values}) > 1

    def test_texts_that_are_decided_together(self, command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """One object per text, with what it counts; and one after the other where they are shown."""
        monkeypatch.setitem(registry._classes, BeamSearch.name, BeamSearch)
        settings = ("generate", "Once", "-n", "3", "-t", "1", "--max-new-tokens", "5", "--method", BeamSearch.name)
        replies = toy.generate("Once", BeamSearch.name, n=3, temperature=1.0, max_new_tokens=5)
        values = lines_of(command(*settings, "--json").out)
        assert [list(value) for value in values] == [[*KEYS, "weight", "score"]] * 3
        assert [value["text"] for value in values] == [reply.text for reply in replies]
        assert [(value["weight"], value["score"]) for value in values] == [(r.weight, r.score) for r in replies]
        assert command(*settings).out == "\n---\n".join(reply.text for reply in replies) + "\n"

    def test_logprobs(self, command: Any, toy: Any) -> None:
        (value,) = lines_of(
            command("generate", "Once", "--json", "--logprobs", "2", "-t", "0.7", "--max-new-tokens", "5").out
        )
        assert len(value["logprobs"]) == len(value["token_ids"])
        for entry, token in zip(value["logprobs"], value["token_ids"], strict=True):
            assert list(entry) == ["token_id", "text", "raw", "processed", "top"]
            assert entry["token_id"] == token
            assert len(entry["top"]) == 2
            assert list(entry["top"][0]) == ["token_id", "text", "raw"]
        assert "prompt_logprobs" not in value

    def test_logprobs_of_the_prompt(self, command: Any, toy: Any) -> None:
        arguments = ("--json", "--logprobs", "0", "--echo", "--max-new-tokens", "5")
        (value,) = lines_of(command("generate", "Once", *arguments).out)
        assert value["text"].startswith("Once")
        assert len(value["prompt_logprobs"]) == 3

    def test_what_json_cannot_say_is_null(self, capsys: pytest.CaptureFixture[str]) -> None:
        from decodery.cli.console import print_json

        print_json({"a": [float("-inf"), float("nan"), 1.5], "b": ("é",)})
        assert capsys.readouterr().out == '{"a": [null, null, 1.5], "b": ["é"]}\n'


class TestInterruption:
    def test_partial_text_is_kept(self, command: Any, interrupted: Any) -> None:
        result = command("generate", "Once", "--method", "autoregressive", "--max-new-tokens", "20")
        assert result.code == 130
        assert result.out == interrupted.generate("Once", "autoregressive", max_new_tokens=3).text + "\n"
        assert "Traceback" not in result.err

    def test_partial_object_is_printed(self, command: Any, interrupted: Any) -> None:
        result = command("generate", "Once", "--json", "--method", "autoregressive", "--max-new-tokens", "20")
        assert result.code == 130
        (value,) = lines_of(result.out)
        assert list(value) == KEYS
        assert value["finish_reason"] == "cancelled"
        assert len(value["token_ids"]) == 4  # the fourth event was on its way
        assert value["stats"]["new_tokens"] == value["stats"]["forwards"] == 4

    def test_partial_samples_are_kept(self, command: Any, interrupted: Any) -> None:
        result = command(
            "generate",
            "Once",
            "-n",
            "2",
            "-t",
            "1",
            "--seed",
            "1",
            "--method",
            "autoregressive",
            "--max-new-tokens",
            "9",
        )
        assert result.code == 130
        assert result.out.count("\n---\n") == 1

    def test_lines_that_are_done_are_kept(
        self, command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(4)))
        stream, calls = toy.stream, []

        def second_time(prompt: Any, *arguments: Any, **settings: Any) -> Stream:
            events = stream(prompt, *arguments, **settings)
            if not isinstance(prompt, list):  # only looked at, not decoded yet
                return events
            calls.append(prompt)

            def some() -> Generator[Event]:
                for place, event in enumerate(events):
                    if len(calls) == 2 and place == 2:
                        raise KeyboardInterrupt
                    yield event

            return Stream(some(), events.replies)

        monkeypatch.setattr(toy, "stream", second_time)
        result = command("generate", "--prompts", str(file), "--batch-size", "2", "--max-new-tokens", "3")
        assert result.code == 130
        values = lines_of(result.out)
        assert [value["line"] for value in values] == [1, 2, 3, 4]
        assert [value["finish_reason"] for value in values] == ["length", "length", "cancelled", "cancelled"]
        assert [len(value["token_ids"]) for value in values] == [3, 3, 2, 2]
        assert "2 of 4" in result.err


class TestPromptsFile:
    def test_results_in_order_with_ids(self, command: Any, toy: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        prompts = ["one", [{"role": "user", "content": "two"}], "three", [102, 111]]
        keys = ["messages" if isinstance(p, list) and isinstance(p[0], dict) else "prompt" for p in prompts]
        rows = [{key: p, "id": f"q{i}"} for i, (key, p) in enumerate(zip(keys, prompts, strict=True))]
        file.write_text("\n\n".join(json.dumps(row) for row in rows))
        values = lines_of(command("generate", "--prompts", str(file), "--batch-size", "3", "--max-new-tokens", "8").out)
        assert [value["id"] for value in values] == ["q0", "q1", "q2", "q3"]
        assert [value["line"] for value in values] == [1, 3, 5, 7]
        assert list(values[0]) == ["line", "id", *KEYS]
        for value, prompt in zip(values, prompts, strict=True):
            assert value["text"] == toy.generate(prompt, max_new_tokens=8).text

    def test_packed_in_batches(self, command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\nbad\n" for i in range(5)))
        stream, sizes = toy.stream, []

        def counted(prompts: Any, *arguments: Any, **settings: Any) -> Any:
            if isinstance(prompts, list):  # the others are only looked at
                sizes.append(len(prompts))
            return stream(prompts, *arguments, **settings)

        monkeypatch.setattr(toy, "stream", counted)
        result = command("generate", "--prompts", str(file), "--batch-size", "2", "--max-new-tokens", "2")
        assert sizes == [2, 2, 1]
        assert [value["line"] for value in lines_of(result.out)] == list(range(1, 11))

    def test_bad_lines_are_named_and_the_good_ones_run(self, command: Any, toy: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        long = json.dumps({"prompt": "x" * 5000, "id": "long"})
        bad = [
            "{", "[1]", "{}", '{"prompt": ""}', '{"prompt": 5}', '{"prompt": "a", "messages": []}', '{"messages": []}',
            '{"messages": [{"role": "user"}]}', '{"messages": ["hi"]}', '{"prompt": "a", "temperature": 1}', long,
            '{"prompt": [1, 99999]}', '{"prompt": [true]}', '{"prompt": "\\ud800"}',
        ]  # fmt: skip
        file.write_text("\n".join(['{"prompt": "good"}', *bad, '{"prompt": "good"}']))
        result = command("generate", "--prompts", str(file), "--max-new-tokens", "3")
        values = lines_of(result.out)
        assert result.code == 2
        assert [value["line"] for value in values] == list(range(1, len(bad) + 3))
        assert values[0]["text"] == values[-1]["text"] == toy.generate("good", max_new_tokens=3).text
        for number, value in enumerate(values[1:-1], start=2):
            assert set(value) - {"id"} == {"line", "error"}, value
            assert f"{file}, line {number}: {value['error']}" in result.err
        assert values[11]["id"] == "long"
        assert "5000 tokens" in values[11]["error"]
        assert "context of 4096" in values[11]["error"]

    def test_lines_wait_for_memory_and_one_that_never_fits_is_named(
        self, command: Any, toy: Any, tmp_path: Path
    ) -> None:
        from decodery.engine.memory import KVBudget

        file = tmp_path / "prompts.jsonl"
        texts = ["one", "x" * 300, "two", "three"]
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        arguments = ("generate", "--prompts", str(file), "--max-new-tokens", "5", "--method", "autoregressive")
        expected = lines_of(command(*arguments).out)
        toy._budget = KVBudget(toy.network.cache_bytes(64))
        result = command(*arguments)
        values = lines_of(result.out)
        assert result.code == 2
        assert [value.get("text") for value in values] == [
            value["text"] if place != 1 else None for place, value in enumerate(expected)
        ]
        assert "KV budget" in values[1]["error"]
        assert f"{file}, line 2: {values[1]['error']}" in result.err
        assert values[2]["stats"]["queued_seconds"] > values[0]["stats"]["queued_seconds"]
        assert toy.budget.most_waiting == 2

    def test_a_request_that_fails_alone(
        self, command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import dataclasses

        file = tmp_path / "prompts.jsonl"
        file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        stream = toy.stream

        def second_fails(*arguments: Any, **settings: Any) -> Any:
            events = stream(*arguments, **settings)

            def some() -> Generator[Event]:
                yield from events
                raise RuntimeError("no memory left")

            def replies() -> list[Any]:
                first, second = events.replies()
                return [first, dataclasses.replace(second, error=RuntimeError("no memory left"))]

            return Stream(some(), replies)

        monkeypatch.setattr(toy, "stream", second_fails)
        result = command("generate", "--prompts", str(file), "--max-new-tokens", "3")
        assert result.code == 2
        assert lines_of(result.out)[1] == {"line": 2, "error": "no memory left"}
        assert "line 2: no memory left" in result.err

    def test_samples_are_numbered(self, command: Any, toy: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        result = command("generate", "--prompts", str(file), "-n", "2", "-t", "1", "--max-new-tokens", "3")
        assert [(value["line"], value["sample"]) for value in lines_of(result.out)] == [(1, 0), (1, 1), (2, 0), (2, 1)]

    def test_system_message_for_all_lines_but_those_with_their_own(
        self, command: Any, toy: Any, tmp_path: Path
    ) -> None:
        own = [{"role": "system", "content": "own"}, {"role": "user", "content": "a"}]
        file = tmp_path / "prompts.jsonl"
        file.write_text('{"prompt": "a"}\n' + json.dumps({"messages": own}))
        values = lines_of(command("generate", "--prompts", str(file), "--system", "ours", "--max-new-tokens", "9").out)
        ours = [{"role": "system", "content": "ours"}, {"role": "user", "content": "a"}]
        assert [v["text"] for v in values] == [toy.generate(p, max_new_tokens=9).text for p in (ours, own)]

    def test_from_standard_input(self, command: Any, toy: Any) -> None:
        result = command("generate", "--prompts", "-", "--max-new-tokens", "3", stdin='{"prompt": "a"}\n')
        assert len(lines_of(result.out)) == 1

    def test_a_byte_order_mark_is_no_text(self, command: Any, toy: Any, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        lines = '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n'  # of two files put together
        file.write_text(lines)
        from_file = lines_of(command("generate", "--prompts", str(file), "--max-new-tokens", "3").out)
        piped = lines_of(command("generate", "--prompts", "-", "--max-new-tokens", "3", stdin=lines).out)
        expected = [toy.generate(prompt, max_new_tokens=3).text for prompt in "ab"]
        assert [value["text"] for value in from_file] == [value["text"] for value in piped] == expected
        for arguments in (["-"], []):
            result = command("generate", *arguments, "--max-new-tokens", "3", stdin="\ufeffa\n")
            assert result.out == expected[0] + "\n"

    def test_lines_with_tools(self, command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each line may have its own; a template that takes none has only these lines refused."""
        template = toy.tokenizer.apply_chat_template

        def with_tools(messages: Any, tools: Any = (), **options: Any) -> Any:
            return "".join(tool["name"] for tool in tools) + template(messages, **options)

        messages = [{"role": "user", "content": "Hi"}]
        file, common = tmp_path / "prompts.jsonl", tmp_path / "tools.json"
        file.write_text(
            "\n".join(json.dumps({"messages": messages, **more}) for more in ({}, {"tools": [{"name": "mine"}]}))
        )
        common.write_text('[{"name": "ours"}]')
        arguments = ["generate", "--prompts", str(file), "--max-new-tokens", "3"]
        refused = command(*arguments)
        assert refused.code == 2
        assert [set(value) >= {"error"} for value in lines_of(refused.out)] == [False, True]
        monkeypatch.setattr(toy.tokenizer, "apply_chat_template", with_tools)
        for more, names in (([], ["", "mine"]), (["--tools", str(common)], ["ours", "mine"])):
            values = lines_of(command(*arguments, *more).out)
            expected = [toy.generate(f"{name}<|user|>Hi<|end|><|assistant|>", max_new_tokens=3) for name in names]
            assert [value["text"] for value in values] == [reply.text for reply in expected]
        result = command("generate", "--chat", "Hi", "--tools", str(common), "--max-new-tokens", "3")
        assert result.out == toy.generate("ours<|user|>Hi<|end|><|assistant|>", max_new_tokens=3).text + "\n"

    def test_a_line_without_tokens_fails_alone(
        self, command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encode = toy.tokenizer.encode

        def words(text: str, **options: Any) -> Any:
            if "?" in text:
                raise Exception("Missing [UNK] token")
            return encode(text, **options)

        monkeypatch.setattr(toy.tokenizer, "encode", words)
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": text}) for text in ("a", "why ?", "b")))
        result = command("generate", "--prompts", str(file), "--max-new-tokens", "3")
        values = lines_of(result.out)
        assert result.code == 2
        assert [sorted(value)[0] for value in values] == ["exactness", "error", "exactness"]
        assert values[1]["error"].count("'?'") == 1
        assert values[2]["text"] == toy.generate("b", max_new_tokens=3).text


class TestRefusals:
    """One sentence on standard error, exit code 2, nothing on standard output, and no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["a", "--method", "prompt-lokup"], "did you mean prompt-lookup"),
            (["a", "--method", "token-recycling(kk=1)"], "did you mean k?"),
            (["a", "--method", "token-recycling(k=big)"], "k must be int"),
            (["a", "--method", "token-recycling(k=0)"], "1..8"),
            (["a", "--method", "token-recycling(update=some)"], "all, accepted, none"),
            (["a", "--method", "token-recycling(k=8"], "name(key=value"),
            (["a", "--temperature", "-1"], "temperature must be at least 0"),
            (["a", "--temperature", "warm"], "--temperature"),
            (["a", "--temperature", "nan"], "temperature must be a finite number"),
            (["a", "--top-p", "0"], "top_p must be above 0"),
            (["a", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
            (["a", "--n", "0"], "n must be at least 1"),
            (["a", "--stop", ""], "stop must be"),
            (["a", "--stop-token-id", "9999"], "the model's tokens are 0 to 259"),
            (["a", "--logit-bias", "65"], "ID=VALUE"),
            (["a", "--logit-bias", "x=1"], "ID=VALUE"),
            (["a", "--logit-bias", "9999=1"], "the model's tokens are 0 to 259"),
            (["a", "--batch-size", "0"], "--batch-size must be at least 1"),
            (["a", "--logprobs", "3"], "--logprobs needs --json"),
            (["a", "--frob"], "--frob"),
            ([""], "the prompt is empty"),
            (["a\udcff"], "not valid Unicode at character 1"),
            (["x" * 4000, "--max-new-tokens", "100"], "has 4000 tokens and max_new_tokens is 100, together 4100"),
            (["a", "--file", "prompt.txt"], "not both"),
            (["--file", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
            (["--file", "."], "cannot be read"),
            (["--file", "binary"], "not a text file in UTF-8"),
            (["--prompts", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
            (["--prompts", "binary"], "not a text file in UTF-8"),
            (["--prompts", "empty"], "holds no prompts"),
            (["a", "--prompts", "empty"], "no other prompt"),
            (["a", "--min-new-tokens", "9", "--max-new-tokens", "8"], "min_new_tokens is 9"),
            (["a", "--chat", "--tools", "empty"], "is not JSON"),
            (["a", "--chat", "--tools", "object"], "must hold a list of JSON schemas"),
            (["a", "--chat", "--tools", "tools"], "does not take these tools"),
            (["a", "--tools", "tools"], "tools go with a conversation"),
        ],
    )
    def test_refused(
        self,
        command: Any,
        toy: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        told: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "binary").write_bytes(b"\x93\xff\x00")
        (tmp_path / "empty").write_text("\n \n")
        (tmp_path / "object").write_text("{}")
        (tmp_path / "tools").write_text('[{"name": "weather"}]')
        result = command("generate", *arguments)
        assert result.code == 2
        assert told in result.err
        assert result.out == ""
        assert len(result.err.splitlines()) == 1

    def test_nothing_to_read(self, command: Any, toy: Any) -> None:
        result = command("generate", terminal=True)
        assert (result.code, result.out) == (2, "")
        assert "give a prompt" in result.err

    def test_unknown_model(self, command: Any) -> None:
        result = command("generate", "a", "--model", "smollm-135m")
        assert result.code == 2
        assert "did you mean smollm2-135m" in result.err

    def test_bad_settings_are_found_before_a_model_is_loaded(
        self, command: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("decodery.loading.load", lambda *_, **__: pytest.fail("loaded"))
        for bad in (["--method", "nothing"], ["--top-p", "2"], ["--method", "token-recycling(k=0)"]):
            assert command("generate", "a", *bad).code == 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--kv-budget", "lots", "kv_budget must be a size such as 2GB"),
        ("--prefill-chunk", "-1", "prefill_chunk must be"),
    ],
)
def test_bad_engine_options_are_refused_before_a_model_is_loaded(
    command: Any, option: str, value: str, message: str
) -> None:
    result = command("generate", "hello", "--model", "no/such-model", option, value)
    assert result.code == 2
    assert message in result.err


def test_engine_options_arrive(command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("decodery.loading.load", lambda name, **more: (given.update(more), toy)[1])
    assert (
        command("generate", "hello", "--max-new-tokens", "2", "--kv-budget", "2GB", "--prefill-chunk", "64").code == 0
    )
    assert (given["kv_budget"], given["prefill_chunk"]) == ("2GB", 64)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--quantize", "q4_k"], "quantize must be q8_0 or q4_0, not 'q4_k'."),
        (["--quantize", "q8_0", "--fast", "native"], "integer path alone; give fast='auto' or 'integer'"),
        (["--quantize", "q8_0", "--dtype", "float32"], "computes in bfloat16, not in float32; leave dtype out."),
    ],
)
def test_weights_that_cannot_be_rounded_so_are_refused_before_anything_is_fetched(
    command: Any, options: list[str], told: str
) -> None:
    result = command("generate", "Once", "--model", "no/such-model", *options)
    assert (result.code, result.out) == (2, "")
    assert told in result.err.replace("\n", " ")
