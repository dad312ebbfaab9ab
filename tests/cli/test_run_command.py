"""decodery run: a conversation over a pipe, its commands, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def answer(toy: Any, *said: str, system: str | None = None, **settings: Any) -> str:
    """What the toy model answers after turns of user, assistant, user, …"""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return toy.generate(messages, **{"max_new_tokens": 12, **settings}).text


def test_one_message_per_line_with_a_memory(command: Any, toy: Any) -> None:
    result = command("run", "--max-new-tokens", "12", stdin="Hello\n\nAnd now?\n")
    first = answer(toy, "Hello")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{first}\n{answer(toy, 'Hello', first, 'And now?')}\n"


def test_system_message(command: Any, toy: Any) -> None:
    expected = answer(toy, "Hello", system="Be brief.") + "\n"
    assert command("run", "--max-new-tokens", "12", "--system", "Be brief.", stdin="Hello\n").out == expected
    result = command("run", "--max-new-tokens", "12", stdin="/system Be brief.\nHello\n")
    assert result.out == f"system message: Be brief.\n{expected}"


def test_messages_of_several_lines(command: Any, toy: Any) -> None:
    result = command("run", "--max-new-tokens", "12", stdin='"""one\ntwo\n"""\n')
    assert result.out == answer(toy, "one\ntwo") + "\n"


def test_reset_forgets(command: Any, toy: Any) -> None:
    for word in ("/reset", "/clear"):
        result = command("run", "--max-new-tokens", "12", stdin=f"Hello\n{word}\nHello\n")
        first = answer(toy, "Hello")
        assert result.out == f"{first}\nthe conversation is empty.\n{first}\n"


def test_exit_leaves_at_once(command: Any, toy: Any) -> None:
    result = command("run", stdin="/exit\nHello\n")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_set_and_settings(command: Any, toy: Any) -> None:
    result = command("run", stdin="/set max-new-tokens 5\n/set stop ['zz', 'q']\n/set temperature default\nHello\n")
    lines = result.out.splitlines()
    assert any(line.split() == ["max_new_tokens", "5"] for line in lines)
    assert any(line.startswith("stop ") and "('zz', 'q')" in line for line in lines)
    assert any(line.split() == ["temperature", "0.0", "default"] for line in lines)
    assert result.out.endswith(answer(toy, "Hello", max_new_tokens=5, stop=("zz", "q")) + "\n")


def test_method_is_shown_and_changed(command: Any, toy: Any) -> None:
    result = command("run", "--max-new-tokens", "12", stdin="/method\n/method prompt-lookup\nHello\n/stats\n")
    assert "method: cascade (Cascade of drafting sources, identical-to-plain)" in result.out
    assert "method: prompt-lookup (" in result.out
    stats = result.out[result.out.index("last answer") :]
    assert "prompt-lookup" in stats
    assert "tokens_per_second" in stats
    assert "all 1 answers" in stats


def test_model_is_shown_and_changed(command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from decodery.testing import toy_language_model

    other = toy_language_model(1)
    load = {"smollm2-135m": toy, "other": other}
    monkeypatch.setattr("decodery.loading.load", lambda name, **_: load[name])
    result = command("run", "--max-new-tokens", "12", stdin="/model\n/model other\nHello\n")
    assert result.out == f"model: {toy.name}\nmodel: {other.name}\n{answer(other, 'Hello')}\n"


def test_retry(command: Any, toy: Any) -> None:
    result = command("run", "--max-new-tokens", "12", stdin="Hello\n/retry\nMore\n")
    first = answer(toy, "Hello")
    told = "greedy decoding gives the same answer again; /set temperature 0.7 for others."
    assert result.out == f"{first}\n{told}\n{first}\n{answer(toy, 'Hello', first, 'More')}\n"


def test_save_and_load(command: Any, toy: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    command("run", "--max-new-tokens", "12", stdin=f"/system Be brief.\nHello\n/save {file}\n")
    saved = json.loads(file.read_text())
    first = answer(toy, "Hello", system="Be brief.")
    assert saved["messages"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": first}]
    assert saved["system"] == "Be brief."
    result = command("run", "--max-new-tokens", "12", stdin=f"/load {file}\nMore\n")
    assert result.out.endswith(answer(toy, "Hello", first, "More", system="Be brief.") + "\n")


def test_help_names_every_command(command: Any, toy: Any) -> None:
    from decodery.cli.chat_commands import COMMANDS

    out = command("run", stdin="/help\n").out
    for _, usage, _ in COMMANDS.values():
        assert usage in out


def test_conversation_that_outgrows_the_context(command: Any, toy: Any) -> None:
    result = command("run", stdin="Hello\n" + "x" * 4000 + "\n/set max_new_tokens 3\nHi\n")
    assert result.code == 0
    assert "max_new_tokens is 512" in result.err
    assert "a context of 4096" in result.err
    assert "/reset" in result.err
    first = answer(toy, "Hello", max_new_tokens=512)
    # What could not be answered is not part of the conversation.
    assert result.out.endswith(answer(toy, "Hello", first, "Hi", max_new_tokens=3) + "\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/stat", "did you mean /stats"),
        ("/method nothing", "there is no method 'nothing'"),
        ("/method token-recycling(k=0)", "1..8"),
        ("/set", "/set NAME VALUE"),
        ("/set temprature 1", "did you mean temperature"),
        ("/set temperature -1", "temperature must be at least 0"),
        ("/set n 3", "n cannot be set in a conversation"),
        ("/set num_return_sequences 3", "n cannot be set in a conversation"),
        ("/load nowhere.json", "nowhere.json cannot be read"),
        ("/load broken.json", "is not a saved conversation"),
        ("/load list.json", "is not a saved conversation"),
        ("/load roles.json", "is not a saved conversation"),
        ("/load", "/load FILE"),
        ("/save nowhere/talk.json", "cannot be written"),
        ("/retry", "nothing to answer again"),
    ],
)
def test_mistakes_are_told_and_the_conversation_goes_on(
    command: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "roles.json").write_text('{"messages": [{"role": "god", "content": "x"}]}')
    result = command("run", "--max-new-tokens", "12", stdin=f"{line}\nHello\n")
    assert result.code == 0
    assert told in result.err
    assert len(result.err.splitlines()) == 1
    assert result.out == answer(toy, "Hello") + "\n"


def test_interrupted_answer_is_part_of_the_conversation(command: Any, interrupted: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    result = command("run", "--method", "autoregressive", stdin=f"Hello\n/save {file}\n")
    shown, decoded = (answer(interrupted, "Hello", max_new_tokens=count) for count in (3, 4))
    assert result.code == 0
    assert result.out.startswith(shown + "\n")
    assert json.loads(file.read_text())["messages"][1]["content"] == decoded


def test_model_without_a_template_continues_text(command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.tokenizer, "chat_template", None)
    result = command("run", "--max-new-tokens", "12", stdin="Once\nThen\n")
    first = toy.generate("Once", max_new_tokens=12).text
    second = toy.generate(f"Once\n{first}\nThen", max_new_tokens=12).text
    assert "has no chat template" in result.err
    assert result.out == f"{first}\n{second}\n"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_leaving_at_the_prompt(command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch, end: type) -> None:
    def leave(prompt: str) -> str:
        raise end

    monkeypatch.setattr("builtins.input", leave)
    assert command("run", terminal=True).code == 0


def test_history_outlives_the_program(command: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    from decodery.models import store

    readline.clear_history()
    typed = iter(["/settings", "/exit"])

    def typing(prompt: str) -> str:
        line = next(typed)
        readline.add_history(line)
        return line

    monkeypatch.setattr("builtins.input", typing)
    assert command("run", terminal=True).code == 0
    assert "/settings" in (store.home() / "history").read_text()
