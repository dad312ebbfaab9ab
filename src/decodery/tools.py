"""Calls of functions: offered to a model in its prompt, kept to their schemas while they are written, read out of the text.

A call is written as the Hermes and Qwen models learnt it: `<tool_call>`, an object with name and arguments, `</tool_call>`.
A chat template that writes these marks is handed the tools; for others a system message describes them in the same form, and
calls and answers of the conversation so far are written out, so that any chat model can be asked. What stands between the
marks is a constraint (`structured_outputs`): a call names a function that there is, and its arguments fit its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from decodery.conversations import checked, shown
from decodery.errors import BadSetting

if TYPE_CHECKING:
    from decodery.conversations import Message
    from decodery.language_model import LanguageModel

OPEN, CLOSE = "<tool_call>\n", "}\n</tool_call>"
"""Around a call. What closes it takes in the brace of the call's own object."""
ANSWER = "<tool_response>\n{}\n</tool_response>"
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What functions may be called, as at OpenAI."""
DESCRIPTION = """You may call functions to help with what the user asks. These are the functions, each with a JSON schema of \
its arguments:
<tools>
{tools}
</tools>
For each call, write a JSON object with the name of the function and its arguments between the tags:
<tool_call>
{{"name": <name of the function>, "arguments": <object of arguments>}}
</tool_call>"""
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of arguments, as the models saw them; white space that may be anything invites small models to write nothing else."""


_shown = partial(shown, most=100)


@dataclass(frozen=True)
class Call:
    """A call that a model has written. arguments: JSON as it stands in the text; cut off where the text is."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """Functions that a model may call.

    functions: each with name, description and parameters (a JSON schema), as OpenAI writes them. choice: "auto", calls or
    text; "required", at least one call; "none", no call; or the name of the function to call. parallel: whether there may be
    several calls.
    """

    functions: tuple[Mapping[str, Any], ...]
    choice: str = "auto"
    parallel: bool = True

    @classmethod
    def of(cls, tools: Any, choice: Any = None, parallel: bool | None = None) -> Tools:
        """From OpenAI's `tools`, `tool_choice` and `parallel_tool_calls`. Raises BadSetting, which names the field."""
        if not isinstance(tools, Sequence) or isinstance(tools, str):
            raise BadSetting("tools must be a list of functions.")
        functions = tuple(_function(tool) for tool in tools)
        names = [function["name"] for function in functions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadSetting(f"tools holds two functions with the name {twice[0]}.")
        return cls(functions, _choice(choice, names), parallel is not False)

    @property
    def named(self) -> bool:
        """Whether one function must be called."""
        return self.choice not in ("auto", "required", "none")

    @property
    def offered(self) -> tuple[Mapping[str, Any], ...]:
        """The functions that may be called."""
        if self.choice == "none":
            return ()
        return tuple(one for one in self.functions if one["name"] == self.choice) if self.named else self.functions

    def constraint(self) -> dict[str, str] | None:
        """What the output must be, for the setting `structured_outputs`; None where it may be anything."""
        if not self.offered:
            return None
        bodies = [
            f"body_{number}: {_said(_opening(one))} %json {json.dumps(_parameters(one))}"
            for number, one in enumerate(self.offered)
        ]
        more = "*" if self.parallel else "?"
        begin, end = _said(OPEN), _said(CLOSE)
        if self.choice == "auto":  # a text may go over into calls; a lazy head ends where it first can
            rules = [
                f"start: (head body {end}){more} rest",
                f"head[lazy]: TEXT {begin}",
                "rest: TEXT",
                r"TEXT: /(.|\n)*/",
            ]
        elif self.parallel and not self.named:
            rules = [f'start: call ("\\n" call)*\ncall: {begin} body {end}']
        else:
            rules = [f"start: {begin} body {end}"]
        body = " | ".join(f"body_{number}" for number in range(len(bodies)))
        return {"grammar": "\n".join(["%llguidance {}", *rules, f"body: {body}", *bodies])}

    def prompt(self, lm: LanguageModel, messages: Sequence[Message], method: Any = None) -> list[int]:
        """Token ids of a conversation with these functions on offer. Raises BadPrompt where the template refuses it."""
        template = getattr(lm.tokenizer, "chat_template", None)
        if isinstance(template, str) and OPEN.strip() in template:
            tools = [{"type": "function", "function": dict(one)} for one in self.offered]
            return lm.tokenize(list(messages), tools or None, method)
        return lm.tokenize(self._described(messages), None, method)

    def _described(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation in words that every template takes."""
        told: list[Message] = [_written(checked(message)) for message in messages]
        if self.offered:
            listed = "\n".join(json.dumps({"type": "function", "function": one}) for one in self.offered)
            said = DESCRIPTION.format(tools=listed)
            first = told[0] if told and told[0]["role"] == "system" else None
            rest = told if first is None else told[1:]
            own = "" if first is None else f"{_text(first['content'])}\n\n"
            told = [{"role": "system", "content": own + said}, *rest]
        return told


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise BadSetting(f'tools holds {_shown(tool)}; a tool is {{"type": "function", "function": {{"name": …}}}}.')
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise BadSetting(
            f"tools holds a function with the name {_shown(name)}; 1 to 64 of a-z, A-Z, 0-9, _ and - make one."
        )
    if parameters is not None and not isinstance(parameters, Mapping):
        raise BadSetting(f"tools holds the function {name}, whose parameters are no JSON schema: {_shown(parameters)}.")
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    if unknown := sorted(set(function) - {"name", "description", "parameters", "strict"}):
        raise BadSetting(
            f"tools holds the function {name} with {unknown[0]!r}; it takes name, description, parameters, strict."
        )
    return kept


def _choice(choice: Any, names: Sequence[str]) -> str:
    if choice is None:
        return "auto" if names else "none"
    if choice in ("auto", "none", "required") and isinstance(choice, str):
        if choice == "required" and not names:
            raise BadSetting("tool_choice is required, and there are no tools.")
        return choice if names else "none"
    function = (
        choice.get("function", choice) if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    )
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        raise BadSetting(
            f'tool_choice is auto, none, required or {{"type": "function", "function": {{"name": …}}}}, not {_shown(choice)}.'
        )
    if name not in names:
        raise BadSetting(
            f"tool_choice names {_shown(name)}, which is not among the tools: {', '.join(names) or 'none'}."
        )
    return str(name)


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments."""
    parameters = dict(function.get("parameters") or {"properties": {}, "additionalProperties": False})
    return {**parameters, "type": "object", "x-guidance": LAYOUT}


def _opening(function: Mapping[str, Any]) -> str:
    return f'{{"name": "{function["name"]}", "arguments": '


def _said(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _written(message: Message) -> dict[str, Any]:
    """A message whose calls, or whose answer to a call, stand in its text."""
    if message.get("role") == "tool":
        return {"role": "user", "content": ANSWER.format(_text(message.get("content")))}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    said = _text(message.get("content"))
    written = [_call_text(call) for call in calls]
    return {"role": "assistant", "content": "\n".join([*([said] if said else []), *written])}


def _call_text(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    return f"{OPEN}{_opening(function)}{json.dumps(function['arguments'])}{CLOSE}"


class CallReader:
    """Reads a text as it comes: what of it is said, and what of it are calls.

    said, called, argued: are told of more text, of a call's name, and of more of the present call's arguments.
    """

    def __init__(
        self, said: Callable[[str], None], called: Callable[[str], None], argued: Callable[[str], None]
    ) -> None:
        self._said, self._called, self._argued = said, called, argued
        self._held = ""
        self._inside = self._named = self._closed = False

    def read(self, text: str, last: bool = False) -> None:
        """Take in more of the text. last: there is no more."""
        self._held += text
        while self._step(last):
            pass

    def _step(self, last: bool) -> bool:
        """Tell of what is certain; whether there may be more to tell."""
        if self._closed and self._held:  # a line break parts calls, and may come later than the mark
            self._held, self._closed = self._held.removeprefix("\n"), False
        if not self._inside:
            place = self._held.find(OPEN)
            if place >= 0:
                self._give(self._said, place, len(OPEN))
                self._inside, self._named = True, False
                return True
            self._give(self._said, len(self._held) if last else len(self._held) - _overlap(self._held, OPEN))
            return False
        if not self._named:
            found = re.match(r'\{"name": "([^"]*)", "arguments": ', self._held)
            if found is None:
                return False
            self._called(found.group(1))
            self._held, self._named = self._held[found.end() :], True
            return True
        place = self._held.find(CLOSE)
        if place >= 0:
            self._give(self._argued, place, len(CLOSE))
            self._inside, self._closed = False, True
            return True
        self._give(self._argued, len(self._held) if last else len(self._held) - _overlap(self._held, CLOSE))
        return False

    def _give(self, to: Callable[[str], None], length: int, mark: int = 0) -> None:
        """Tell of the first signs, and drop them with the mark behind them."""
        if length > 0:
            to(self._held[:length])
        self._held = self._held[length + mark :]


def _overlap(text: str, mark: str) -> int:
    """How many last signs of a text could be the first of a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def read_calls(text: str) -> tuple[str, list[Call]]:
    """What a text says beside its calls, and these. A call that is cut off has the arguments that are there."""
    said: list[str] = []
    calls: list[list[str]] = []
    reader = CallReader(said.append, lambda name: calls.append([name]), lambda more: calls[-1].append(more))
    reader.read(text, last=True)
    return "".join(said), [Call(name, "".join(parts)) for name, *parts in calls]
