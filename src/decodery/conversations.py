"""Conversations to text, by the chat template of a model; what a template would leave out is refused.

A template is a program of its own, and many drop what they do not know without a word: tools, the answers of tools, parts of
contents. So a conversation that is more than users and assistants speaking is rendered a second time, with marks in the
places of what it says; a mark that does not come out was not read.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decodery.errors import BadPrompt

Message = Mapping[str, Any]
"""role and content: a text, or a list of {"type": "text", "text": …}. An assistant's may have `tool_calls` (and no content), a
tool's a `tool_call_id` and a name; other keys go to the template where it reads them."""
Tool = Mapping[str, Any] | Callable[..., Any]
"""A JSON schema as OpenAI and transformers write it, or a documented function."""

PLAIN_ROLES = ("user", "assistant")
METADATA = ("tool_call_id", "name")
"""Keys of a tool's answer that say which call it answers; templates that rely on the order do without."""
MARK = "704153"
"""Begins every mark: digits, which no template changes."""


class Conversations:
    """Renders conversations for one tokenizer. name: of the model, for messages."""

    def __init__(self, tokenizer: Any, name: str):
        self._tokenizer, self._name = tokenizer, name

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> str:
        """The text of a conversation, up to where the answer begins. Raises BadPrompt where a message is malformed, or the
        template does not read all of it."""
        conversation = [checked(message) for message in messages]
        if not getattr(self._tokenizer, "chat_template", None):
            raise BadPrompt(f"{self._name} has no chat template; give the prompt as a plain string.")
        tools = _checked_tools(tools)
        try:
            text = self._text(conversation, tools)
        except Exception as error:  # a template raises what it likes where it does not know a role
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            if tools and self._marked(conversation, None) is not None:
                raise BadPrompt(f"the chat template of {self._name} does not take these tools: {reason}.") from error
            raise BadPrompt(f"the chat template of {self._name} refuses this conversation: {reason}.") from error
        if tools:
            self._check_tools(conversation, tools, text)
        if any(
            set(message) != {"role", "content"} or message["role"] not in PLAIN_ROLES for message in conversation
        ) or any(not isinstance(message["content"], str) for message in conversation):
            self._check_messages(conversation, tools)
            text = self._without_nothing(conversation, tools, text)
        return text

    def _text(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
        more = {"tools": list(tools)} if tools else {}
        text: str = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **more
        )
        return text

    def _marked(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> str | None:
        """The text of messages with marks; None where the template refuses these, which it does only if it reads them."""
        try:
            return self._text(messages, tools)
        except Exception:
            return None

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool], text: str) -> None:
        names = [_tool_name(tool) for tool in tools]
        lost = [name for name in names if name not in text]
        if lost or self._marked(messages, None) == text:
            raise BadPrompt(f"the chat template of {self._name} does not take tools, which this request has.")

    def _check_messages(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> None:
        """Raise BadPrompt for the first thing that the template does not read."""
        for place, message in enumerate(messages):
            for key, value in message.items():
                if key == "role" or (key in METADATA and message["role"] == "tool") or _blank(value):
                    continue
                mark, unread = f"{MARK}{place}01", f"{MARK}{place}02"
                marked = [*messages[:place], {**message, key: _with_mark(key, value, mark, unread)}]
                text = self._marked([*marked, *messages[place + 1 :]], tools)
                if text is None or (mark in text and unread not in text):
                    continue
                if key not in ("content", "tool_calls") and mark in (self._marked(marked, tools) or mark):
                    continue  # read where it matters: thoughts before former answers are left out on purpose
                role = message["role"]
                if key == "content" and isinstance(value, list):
                    what = "contents in parts; give each content as one string"
                elif key == "content":
                    what = f"messages of the role {role!r}"
                else:
                    what = f"the key {key!r} of messages of the role {role!r}"
                raise BadPrompt(f"the chat template of {self._name} does not take {what}.")

    def _without_nothing(self, messages: Sequence[Message], tools: Sequence[Tool] | None, text: str) -> str:
        """The text, in which a content that is not there is not called "None"."""
        empty = [{**message, "content": message["content"] or ""} for message in messages]
        if empty == list(messages):
            return text
        other = self._marked(empty, tools)
        return other if other is not None and other.count("None") < text.count("None") else text


def checked(message: Message) -> dict[str, Any]:
    """A message as templates expect it; arguments of tool calls as objects. Raises BadPrompt."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str | list | None):
        raise BadPrompt(f"a message has a role and a content, both strings; this one is {shown(message)}.")
    result = {**message, "content": content}
    calls = message.get("tool_calls")
    if calls is not None and (role != "assistant" or not isinstance(calls, list) or not all(map(_is_call, calls))):
        raise BadPrompt(
            "tool_calls is a list of calls of an assistant, each with a function that has a name and arguments; "
            f"this message is {shown(message)}."
        )
    if calls:
        result["tool_calls"] = [_with_arguments(call) for call in calls]
    elif content is None:
        raise BadPrompt(f"a message without tool_calls has a content, a string; this one is {shown(message)}.")
    else:
        result.pop("tool_calls", None)
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(part, Mapping) and kind not in (None, "text"):
                raise BadPrompt(f"a content is text here; this one has a part of the type {kind!r}.")
            if kind is None or not isinstance(part.get("text"), str):
                raise BadPrompt(f'a part of a content is {{"type": "text", "text": …}}; this one is {shown(part)}.')
        if not content:
            raise BadPrompt("a content in parts has at least one part; this one has none.")
    return result


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return False
    return isinstance(function.get("arguments", {}), str | Mapping)


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object: as JSON text, as OpenAI sends them, templates would quote them again."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (json.JSONDecodeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise BadPrompt(f"the arguments of a tool call are a JSON object; these are {function['arguments']!r}.")
    complete = {**function, "arguments": arguments}
    return {**call, "function": complete} if "function" in call else complete


def _checked_tools(tools: Sequence[Tool] | None) -> list[Tool] | None:
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise BadPrompt(f"tools is a list of JSON schemas or functions, not {type(tools).__name__}.")
    for tool in tools:
        if not (isinstance(tool, Mapping) and _tool_name(tool)) and not inspect.isroutine(tool):
            raise BadPrompt(
                f"a tool is a JSON schema with the name of a function, or a function; this is {shown(tool)}."
            )
    return [dict(tool) if isinstance(tool, Mapping) else tool for tool in tools] or None


def _tool_name(tool: Tool) -> str:
    if not isinstance(tool, Mapping):
        return str(getattr(tool, "__name__", ""))
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _blank(value: Any) -> bool:
    """Whether nothing is lost where it is not read."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _with_mark(key: str, value: Any, mark: str, unread: str) -> Any:
    """A value of a message with a mark in place of what it says, and another one where only the raw structure shows it."""
    if key == "content" and isinstance(value, list):
        first = next((place for place, part in enumerate(value) if part["text"].strip()), 0)
        return [
            {**part, "text": mark, "unread": unread} if place == first else part for place, part in enumerate(value)
        ]
    if key == "tool_calls":
        return [_called(call, mark) if place == 0 else call for place, call in enumerate(value)]
    return mark


def _called(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "name": name}} if "function" in call else {**call, "name": name}


def shown(value: Any, most: int = 200) -> str:
    """A value for a message, its first signs."""
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= most else text[:most] + "…"
