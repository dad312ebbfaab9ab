"""The /commands of `decodery run`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decodery.cli.console import output, print_line, print_table
from decodery.cli.conversation import Conversation
from decodery.errors import BadInput, BadSetting, near
from decodery.sampling.chance import Source


class Leave(Exception):
    """The user wants to go."""


class Retry(Exception):
    """The user wants another answer to the last message."""


def obey(conversation: Conversation, line: str, load: Callable[[str], Any]) -> None:
    """Carry out a line that begins with a slash.

    load: loads another model by its name. Raises Leave and Retry for the loop, and DecoderyError for what is wrong.
    """
    word, _, rest = line.strip().partition(" ")
    name, rest = word.removeprefix("/").lower(), rest.strip()
    if name == "model" and rest:
        conversation.lm = load(rest)
        print_line(f"model: {conversation.lm.name}")
        return
    if name not in COMMANDS:
        hint = near(f"/{name}", [f"/{known}" for known in COMMANDS])
        raise BadInput(f"there is no command /{name}; {hint}")
    COMMANDS[name][0](conversation, rest)


def _help(conversation: Conversation, rest: str) -> None:
    rows = [(usage, meaning) for _, usage, meaning in COMMANDS.values() if usage]
    print_table(("command", "what it does"), rows)
    print_line('A message of several lines begins and ends with """. Ctrl-C stops an answer; at the prompt it leaves.')


def _method(conversation: Conversation, rest: str) -> None:
    from decodery.engine import registry

    if rest:
        registry.method(rest)
        conversation.method = rest
    chosen = registry.method(conversation.method)
    print_line(f"method: {chosen.spec()} ({chosen.title}, {chosen.exactness})")


def _model(conversation: Conversation, rest: str) -> None:
    print_line(f"model: {conversation.lm.name}")


def _set(conversation: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    if not name or not value.strip():
        raise BadSetting("write /set NAME VALUE, such as /set temperature 0.7; /settings lists the names.")
    conversation.set(name, _value(value.strip()))
    _settings(conversation, "")


def _value(text: str) -> Any:
    """A value as one types it: a number, true or false, a quoted or bare text; "default" is None."""
    words = {"true": True, "false": False, "default": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _settings(conversation: Conversation, rest: str) -> None:
    from decodery.cli.conversation import NOT_IN_A_CHAT
    from decodery.engine.settings import declared

    hidden = {*NOT_IN_A_CHAT, "processors", "stopping_criteria", "order"}
    defaults = {name: own.default for name, own in declared().items() if name not in hidden}
    rows = [
        (name, _shown(conversation.settings.get(name, default)), "" if name in conversation.settings else "default")
        for name, default in defaults.items()
    ]
    print_table(("setting", "value", ""), [("method", conversation.method, ""), *rows])


def _shown(value: Any) -> str:
    if value is None or value in ((), {}):
        return "none"
    return value.spec() if isinstance(value, Source) else str(value)


def _system(conversation: Conversation, rest: str) -> None:
    conversation.system = rest or None
    print_line(f"system message: {rest}" if rest else "no system message")


def _stats(conversation: Conversation, rest: str) -> None:
    if conversation.last is None:
        print_line("no answer yet.")
        return
    last, totals = conversation.last, conversation.totals
    numbers = [
        (name, f"{value:.3f}" if isinstance(value, float) else str(value))
        for name, value in last.stats.items()
        if value is not None and not isinstance(value, dict)
    ]
    print_table(("last answer", "value>"), [("method", last.method), ("exactness", last.exactness), *numbers])
    speed = totals.new_tokens / totals.seconds if totals.seconds else 0.0
    output().print(
        f"all {totals.answers} answers: {totals.new_tokens} tokens in {totals.seconds:.2f} s, {speed:.1f} tokens/s; "
        f"{totals.accepted} of {totals.drafted} drafted tokens accepted.",
        soft_wrap=True,
    )


def _save(conversation: Conversation, rest: str) -> None:
    path = _path("save", rest)
    conversation.save(path)
    print_line(f"saved {len(conversation.messages)} messages to {path}")


def _load(conversation: Conversation, rest: str) -> None:
    path = _path("load", rest)
    conversation.load(path)
    print_line(f"loaded {len(conversation.messages)} messages from {path}")


def _path(command: str, rest: str) -> Path:
    if not rest:
        raise BadInput(f"write /{command} FILE.")
    return Path(rest).expanduser()


def _retry(conversation: Conversation, rest: str) -> None:
    if conversation.messages and conversation.messages[-1]["role"] == "assistant":
        conversation.take_back()
    if not conversation.messages:
        raise BadInput("there is nothing to answer again.")
    if not conversation.settings.get("temperature"):
        print_line("greedy decoding gives the same answer again; /set temperature 0.7 for others.")
    raise Retry


def _reset(conversation: Conversation, rest: str) -> None:
    conversation.reset()
    print_line("the conversation is empty.")


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


COMMANDS: dict[str, tuple[Callable[[Conversation, str], None], str, str]] = {
    "help": (_help, "/help", "this list"),
    "method": (_method, "/method [SPEC]", "show or change the decoding method, such as prompt-lookup(length=5)"),
    "model": (_model, "/model [NAME]", "show or change the model"),
    "set": (_set, "/set NAME VALUE", "change a setting; the value default gives it back"),
    "settings": (_settings, "/settings", "method and settings"),
    "system": (_system, "/system [TEXT]", "set the system message, or remove it"),
    "stats": (_stats, "/stats", "what the last answer cost"),
    "save": (_save, "/save FILE", "write the conversation to a file"),
    "load": (_load, "/load FILE", "go on with a saved conversation"),
    "retry": (_retry, "/retry", "answer the last message again"),
    "reset": (_reset, "/reset, /clear", "begin anew"),
    "clear": (_reset, "", ""),
    "exit": (_leave, "/exit", "leave; so does Ctrl-D"),
    "quit": (_leave, "", ""),
    "bye": (_leave, "", ""),
}
"""Name -> what it does, how it is written and what it means. Without the latter two: another name of one before."""
