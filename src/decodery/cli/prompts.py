"""Prompts from where a user keeps them: an argument, a file, standard input, or a JSONL file with one in each line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decodery.cli.console import BYTE_ORDER_MARK
from decodery.errors import BadInput, BadPrompt
from decodery.text_files import read_text

STANDARD_INPUT = "-"
SETTINGS = frozenset(
    {"method", "model", "seed", "n", "stop", "logprobs", "max_tokens", "max_new_tokens", "min_new_tokens", "top_k"}
    | {"temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"}
    | {
        "max_completion_tokens",
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "echo",
        "top_logprobs",
        "best_of",
        "suffix",
    }
    | {"tool_choice", "response_format", "functions", "function_call"}
)
"""Keys that mean something in other tools' batch files. Ignoring them in a line would give another text than asked."""


@dataclass(frozen=True)
class Line:
    """One line of a prompts file: its number, its prompt or what is wrong with it, and the id it carries."""

    number: int
    prompt: Any = None
    error: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """The "id" of the line, where it has one; repeated in its result."""
    tools: Any = None
    """What its conversation may call."""


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The one prompt of a call. Without one final line break, which editors and `echo` add."""
    if argument is not None and argument != STANDARD_INPUT:
        if file is not None:
            raise BadInput("give the prompt as the argument or with --file, not both.")
        text = argument
    elif file is not None:
        text = _without_last_break(read_text(file))
    elif argument == STANDARD_INPUT or not sys.stdin.isatty():
        text = _without_last_break(_standard_input())
    else:
        raise BadInput("give a prompt: as the argument, with --file, or on standard input.")
    if not text:
        raise BadPrompt("the prompt is empty; give at least one character.")
    return characters(text)


def characters(text: str) -> str:
    """The text. Raises BadPrompt where it holds bytes or escapes that are no characters, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(f"the prompt is not valid Unicode at character {error.start}.") from None
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.read().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is not text in {error.encoding.upper()} (byte {error.start}).") from None


def _without_last_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def as_conversation(prompt: Any, chat: bool, system: str | None) -> Any:
    """A prompt with `--chat` and `--system` applied: a plain text becomes what the user says.

    A conversation gets the system message only where it has none of its own.
    """
    if isinstance(prompt, str):
        if not chat and system is None:
            return prompt
        messages: list[Any] = [{"role": "user", "content": prompt}]
    elif prompt and isinstance(prompt[0], Mapping):
        messages = list(prompt)
    else:
        return prompt
    if system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def read_tools(file: Path | None) -> Any:
    """The tools in a JSON file: a list of schemas. None without a file. Raises BadInput."""
    if file is None:
        return None
    try:
        tools = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise BadInput(f"{file} is not JSON ({error.msg} in line {error.lineno}).") from None
    except RecursionError:
        raise BadInput(f"{file} is nested too deeply.") from None
    if not isinstance(tools, list):
        raise BadInput(f"{file} must hold a list of JSON schemas, one for each tool, not {_kind(tools)}.")
    return tools


def read_lines(file: Path) -> list[Line]:
    """The lines of a JSONL file of prompts; "-" is standard input. Empty lines are skipped, bad ones keep their error.

    Raises BadInput where the file as a whole cannot be read, or holds nothing.
    """
    text = _standard_input() if str(file) == STANDARD_INPUT else read_text(file)
    lines = [_line(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise BadInput(f"{file} holds no prompts; each line is an object with a prompt or messages.")
    return lines


def _line(number: int, text: str) -> Line:
    try:
        value = json.loads(text.removeprefix(BYTE_ORDER_MARK))  # files put together have one in the middle
    except json.JSONDecodeError as error:
        return Line(number, error=f"it is not JSON ({error.msg} at column {error.colno}).")
    except RecursionError:
        return Line(number, error="it is nested too deeply.")
    if not isinstance(value, dict):
        return Line(number, error=f"it must be an object with a prompt or messages, not {_kind(value)}.")
    labels = {"id": value["id"]} if "id" in value else {}
    try:
        return Line(number, _prompt(value), labels=labels, tools=value.get("tools"))
    except BadPrompt as error:
        return Line(number, error=str(error), labels=labels)


def _prompt(value: Mapping[str, Any]) -> Any:
    if ("prompt" in value) == ("messages" in value):
        raise BadPrompt("it must have either a prompt or messages.")
    own = sorted(SETTINGS & set(value))
    if own:
        raise BadPrompt(f"it sets {', '.join(own)}, which only options of the command can set, for all lines.")
    if "tools" in value and not isinstance(value["tools"], list):
        raise BadPrompt(f"tools must be a list of JSON schemas, not {_kind(value['tools'])}.")
    if "messages" in value:
        if not isinstance(value["messages"], list) or not value["messages"]:
            raise BadPrompt(f"messages must be a list of messages, not {_kind(value['messages'])}.")
        if not all(isinstance(message, dict) for message in value["messages"]):
            raise BadPrompt("each message must be an object with role and content.")
        characters(json.dumps([value["messages"], value.get("tools")], ensure_ascii=False))
        return value["messages"]
    prompt = value["prompt"]
    ids = isinstance(prompt, list) and all(isinstance(id, int) and not isinstance(id, bool) for id in prompt)
    if not isinstance(prompt, str) and not ids:
        raise BadPrompt(f"the prompt must be a string or a list of token ids, not {_kind(prompt)}.")
    if not prompt:
        raise BadPrompt("the prompt is empty.")
    return characters(prompt) if isinstance(prompt, str) else prompt


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence):
        return "a list" if value else "an empty list"
    return "a number"
