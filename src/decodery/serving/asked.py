"""From the body of a request to what is to be decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from decodery.engine import registry
from decodery.errors import BadParameter, BadSetting, MethodUnavailable, UnknownMethod
from decodery.sampling.structured.constraint import constraint_of
from decodery.serving.failures import Failure, bad_field
from decodery.serving.fields import CHAT, COMPLETIONS, EVENTS, RESPONSES, Route
from decodery.tools import Tools

DEFAULT_TEMPERATURE = 1.0
"""OpenAI's; that of `decodery.load(...).generate` is 0."""
COMPLETION_TOKENS = 16
"""OpenAI's most new tokens of a completion that names no number."""
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True)
class AskedText:
    """What a request asks for. prompts: texts, conversations or lists of token ids. settings: as they were given, by the
    route's fields. logprobs: alternatives per token; None: no log probabilities. own: the route's other fields. tools: what the
    model may call; None: the request speaks of none."""

    route: Route
    prompts: list[Any]
    settings: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    include_usage: bool = False
    tools: Tools | None = None

    @property
    def model(self) -> str | None:
        """The name of the model, where one is given."""
        name: str | None = self.own.get("model")
        return name

    @property
    def method(self) -> str | None:
        """The spec of the method, where one is given."""
        spec: str | None = self.own.get("method")
        return spec

    @property
    def names(self) -> dict[str, str]:
        """How messages call what is given -> the field by which it was given."""
        known = self.route.settings()
        return {**{name: name for name in self.own}, **{known[name]: name for name in self.settings}}

    @property
    def stream(self) -> bool:
        """Whether the text is sent as it comes."""
        return self.route is EVENTS or bool(self.own.get("stream", False))

    @property
    def token_ids(self) -> bool:
        """Whether token ids are wanted."""
        return bool(self.own.get("return_token_ids", False))

    @property
    def suffix(self) -> str:
        """What stands behind the texts that are filled in; empty: they are continued."""
        suffix: str = self.own.get("suffix", "")
        return suffix

    @property
    def n(self) -> int:
        """Texts of each prompt."""
        value: int = self.settings.get("n", self.settings.get("num_return_sequences", 1))
        return value


def read_json(data: bytes) -> dict[str, Any]:
    """The object of a body. Raises Failure."""
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except Failure:
        raise
    except RecursionError:
        raise Failure(400, "the body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise Failure(400, f"the body is no JSON: {_reason(error)}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Failure(400, "the body must be a JSON object.", code="invalid_json")
    return body


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number in it has too many digits"


def _no_number(word: str) -> float:
    raise Failure(400, f"the body holds {word}, which is no JSON number.", code="invalid_json")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose keys stands there twice: which of them would be meant?"""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Failure(400, f"{key[:100]!r} stands twice in the body.", key[:100], "invalid_json")
        found[key] = value
    return found


def read(route: Route, body: Mapping[str, Any]) -> AskedText:
    """What the body of a route asks for; all is checked that needs no model. Raises Failure."""
    own, settings = route.read(body)
    if route.prompt not in own:
        raise bad_field(route.prompt, f"{route.prompt} is missing.", "missing_required_parameter")
    _check_method(own.get("method"))
    prompts = READ_PROMPTS[route.path](own)
    logprobs, usage = _logprobs(route, own, settings), _stream_options(route, own)
    if own.get("best_of", (n := settings.get("n", 1))) != n:
        raise bad_field("best_of", f"best_of must equal n, which is {n}: a choice among more texts is not offered.")
    if own.get("stream_options") and not own.get("stream"):
        raise bad_field("stream_options", "stream_options goes with stream=true.")
    if own.get("suffix"):
        if any(not isinstance(prompt, str) for prompt in prompts):
            raise bad_field("suffix", "suffix goes with prompts that are texts, not with token ids.")
        if settings.get("echo"):
            raise bad_field("echo", "echo does not go with suffix, which stands within the prompt.")
    tools = _tools(route, own, settings)
    return AskedText(route, prompts, settings, own, logprobs, usage, tools)


def _tools(route: Route, own: Mapping[str, Any], settings: dict[str, Any]) -> Tools | None:
    """What the model may call; the constraint that calls are is put among the settings."""
    if not own.get("tools"):
        if own.get("tool_choice", "auto") not in ("auto", "none"):
            raise bad_field("tool_choice", "tool_choice names a tool, and there are no tools.")
        return None
    if route is RESPONSES:
        if own.get("include") and own.get("tool_choice") != "none":
            raise bad_field("include", "log probabilities do not stand beside calls of tools; give tool_choice='none'.")
        if "text" in settings and constraint_of("text", settings["text"]) is None:
            settings.pop("text")
    try:
        tools = [_nested(tool) for tool in own["tools"]] if route is RESPONSES else own["tools"]
        choice = Tools.of(tools, own.get("tool_choice"), own.get("parallel_tool_calls"))
        wanted = choice.constraint()
        constraint_of("tools", wanted)
    except BadSetting as error:
        raise bad_field("tool_choice" if str(error).startswith("tool_choice") else "tools", str(error)) from None
    if wanted is not None:
        if other := next(
            (name for name in ("structured_outputs", "response_format", "text") if name in settings), None
        ):
            raise bad_field(other, f"{other} and calls of tools do not go together; give tool_choice='none'.")
        settings["structured_outputs"] = wanted
    return choice


def _nested(tool: Any) -> Any:
    """A tool of /v1/responses, which has beside its type what chat completions have within it."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _check_method(spec: str | None) -> None:
    if spec is None:
        return
    try:
        files = registry.files_of(registry.method(spec))
    except (BadParameter, UnknownMethod, MethodUnavailable) as error:
        raise bad_field("method", str(error)) from None
    if files:
        raise bad_field("method", f"{files[0]} names a file of the server, which requests must not read.")


def _logprobs(route: Route, own: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """How many alternatives are told with the log probabilities; None: neither."""
    if route in (COMPLETIONS, EVENTS):
        number: int | None = settings.get("logprobs")
        return number
    alternatives: int = own.get("top_logprobs", 0)
    if route is CHAT:
        wanted, asks = own.get("logprobs", False), "logprobs=true"
    else:
        include = own.get("include", [])
        for item in include if isinstance(include, list) else [include]:
            if item != LOGPROBS:
                raise bad_field("include", f"include may hold {LOGPROBS!r}, not {str(item)[:100]!r}.")
        wanted, asks = bool(include), f"include=[{LOGPROBS!r}]"
    if alternatives and not wanted:
        raise bad_field("top_logprobs", f"top_logprobs goes with {asks}.")
    return alternatives if wanted else None


def _stream_options(route: Route, own: Mapping[str, Any]) -> bool:
    """Whether the usage is told at the end of a stream."""
    options = own.get("stream_options", {})
    taken = {"include_obfuscation": (False,)} | ({} if route is RESPONSES else {"include_usage": (True, False)})
    for name, value in options.items():
        if value is not None and (name not in taken or not any(value is good for good in taken[name])):
            said = f"stream_options.{name[:100]}"
            raise bad_field(said, f"{said} cannot be {str(value)[:100]}.", "unsupported_field")
    return bool(options.get("include_usage", False))


# Prompts


def _conversation(own: Mapping[str, Any]) -> list[Any]:
    messages = own["messages"]
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "messages must be a list of at least one message.")
    return [[_message(message, "messages") for message in messages]]


def _message(message: Any, param: str) -> dict[str, Any]:
    """A message as the chat template reads it: what clients send back empty is left out, OpenAI's developer is a system."""
    if not isinstance(message, dict):
        raise bad_field(param, "a message is an object with role and content.")
    kept = {key: value for key, value in message.items() if key == "content" or value not in (None, [])}
    if kept.get("role") == "developer":
        kept["role"] = "system"
    return _with_text(kept)


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a single part of text, as many clients write every content, has that text as its content: most
    chat templates take nothing else."""
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        [part] = content
        if set(part) == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
            return {**message, "content": part["text"]}
    return message


def _texts(own: Mapping[str, Any]) -> list[Any]:
    prompt = own["prompt"]
    ids = _is_ids(prompt)
    listed = [prompt] if isinstance(prompt, str) or ids else prompt
    if not isinstance(listed, list) or not listed:
        raise bad_field("prompt", "prompt must be a text, a list of texts, token ids, or a list of lists of token ids.")
    if not (all(isinstance(one, str) for one in listed) or all(_is_ids(one) for one in listed)):
        raise bad_field("prompt", "the prompts of a list must all be texts, or all be lists of token ids.")
    return listed


def _prompt(own: Mapping[str, Any]) -> list[Any]:
    prompt = own["prompt"]
    if isinstance(prompt, str) or _is_ids(prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt):
        return [[_message(message, "prompt") for message in prompt]]
    raise bad_field("prompt", "prompt must be a text, token ids, or a list of at least one message.")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _input(own: Mapping[str, Any]) -> list[Any]:
    given = own["input"]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or not messages:
        raise bad_field("input", "input must be a text, or a list of at least one message.")
    read_messages: list[dict[str, Any]] = []
    for item in messages:
        _add_item(read_messages, item)
    if "instructions" in own:
        read_messages.insert(0, {"role": "system", "content": own["instructions"]})
    return [read_messages]


READ_PROMPTS: Mapping[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    CHAT.path: _conversation,
    COMPLETIONS.path: _texts,
    RESPONSES.path: _input,
    EVENTS.path: _prompt,
}


def _add_item(messages: list[dict[str, Any]], item: Any) -> None:
    """Take an item of the input in: as a message, or as a call of the assistant's last one."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not messages or messages[-1].get("role") != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        content = [_input_part(part) for part in output] if isinstance(output, list) else output
        messages.append(_with_text({"role": "tool", "tool_call_id": item.get("call_id"), "content": content}))
    else:
        messages.append(_input_item(item))


def _input_item(item: Any) -> dict[str, Any]:
    message = _message(item, "input")
    kind = message.pop("type", "message")
    if kind != "message":
        raise bad_field(
            "input",
            "an item of the input is a message, function_call or function_call_output here, not of the type "
            f"{str(kind)[:100]!r}.",
        )
    for key in ("id", "status"):  # of messages that come back from an earlier response
        message.pop(key, None)
    if isinstance(message.get("content"), list):
        message["content"] = [_input_part(part) for part in message["content"]]
    return _with_text(message)


def _input_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text"):
        raise bad_field("input", f"a part of a content is text here, not of the type {str(kind)[:100]!r}.")
    return {"type": "text", "text": part.get("text")}
