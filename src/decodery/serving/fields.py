"""The fields of requests: which there are on each route, what they may be, and which are known but not offered.

What concerns decoding is not listed here: it follows from the settings that the registry declares, so a new step of the law is
a new field of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from decodery.conversations import shown
from decodery.engine.settings import aliases, declared
from decodery.errors import BadSetting, near
from decodery.sampling.settings import ANY_VOCABULARY, Flag, Text, ValueKind, Whole
from decodery.serving.failures import bad_field

LONGEST_WORD = 256
"""Characters of names that clients choose."""
LONGEST_SPEC = 2000
"""Characters of what is written as name(key=value)."""
SPECS = ("target", "chance", "processors", "order")
"""Settings that may be written so."""


class Anything(ValueKind):
    """A JSON value that is read elsewhere. described: its schema."""

    def __init__(self, **described: Any):
        self._described = described

    def schema(self) -> Mapping[str, Any]:
        return self._described

    def check(self, name: str, value: Any, vocabulary: int) -> Any:
        return value


class JsonObject(ValueKind):
    """A JSON object."""

    def schema(self) -> Mapping[str, Any]:
        return {"type": "object"}

    def check(self, name: str, value: Any, vocabulary: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadSetting(f"{name} must be an object, not {_shown(value)}.")
        return value


class ShortText(Text):
    """A string of at most so many characters."""

    def __init__(self, longest: int):
        self._longest = longest

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "maxLength": self._longest}

    def check(self, name: str, value: Any, vocabulary: int) -> str:
        if len(text := super().check(name, value, vocabulary)) > self._longest:
            raise BadSetting(f"{name} may have {self._longest} characters, and this one has {len(text)}.")
        return text


SPEC = ShortText(LONGEST_SPEC)
"""Something like token-recycling(k=4)."""


@dataclass(frozen=True)
class BodyField:
    """A field of a request's body that is no setting of the registry."""

    kind: ValueKind
    help: str


@dataclass(frozen=True)
class NotOffered:
    """A field of OpenAI's or vLLM's that asks for what this server does not do. neutral: values that ask for nothing and are
    taken; all others are refused. instead: what to do, as a sentence."""

    neutral: tuple[Any, ...] = ()
    instead: str = ""


COMMON: Mapping[str, BodyField] = {
    "model": BodyField(ShortText(LONGEST_WORD), "Which model; default: the first that the server was started with."),
    "method": BodyField(
        SPEC, 'Decoding method, as "name" or "name(key=value)"; default: the fast lossless one of the model.'
    ),
    "stream": BodyField(Flag(), "Send the text as it comes, as server-sent events."),
    "user": BodyField(ShortText(LONGEST_WORD), "Who asks in the end; written into the log, and used for nothing else."),
    "vllm_xargs": BodyField(JsonObject(), "More fields of this table, as vLLM's clients send them."),
}
STREAM_OPTIONS = BodyField(JsonObject(), "`include_usage`: the last event tells the usage.")
RETURN_TOKEN_IDS = BodyField(Flag(), "Give the token ids of prompt and text.")

TOOLS: Mapping[str, BodyField] = {
    "tools": BodyField(
        Anything(type="array", items={"type": "object"}),
        "Functions that the model may call, with name, description and parameters; calls fit their schemas.",
    ),
    "tool_choice": BodyField(
        Anything(anyOf=[{"enum": ["auto", "none", "required"]}, {"type": "object"}]),
        "auto: text or calls; required: a call; none: no call; or a function by its name.",
    ),
    "parallel_tool_calls": BodyField(Flag(), "Whether there may be several calls; default true."),
}
NOT_OFFERED: Mapping[str, NotOffered] = {
    "store": NotOffered((False,), "nothing is stored here."),
    "metadata": NotOffered(({},), "nothing is stored here."),
    "service_tier": NotOffered(("auto", "default")),
    "safety_identifier": NotOffered(),
    "prompt_cache_key": NotOffered((), "prompts that begin alike are found without a key."),
    "prompt_cache_options": NotOffered(),
    "prompt_cache_retention": NotOffered(),
    "moderation": NotOffered(),
    "logits_processors": NotOffered(([],), "use processors, by their names."),
    "logits_processor": NotOffered(([],), "use processors, by their names."),
    "guided_json": NotOffered((), 'use structured_outputs={"json": …}.'),
    "prompt_logprobs": NotOffered((), "use /v1/completions with echo and logprobs."),
    "draft_model": NotOffered((), 'use method="draft-model(draft=NAME)".'),
    "num_draft_tokens": NotOffered((), 'use method="draft-model(length=…)".'),
    "use_beam_search": NotOffered((False,)),
}
NOT_IN_CHAT: Mapping[str, NotOffered] = {
    **NOT_OFFERED,
    "reasoning_effort": NotOffered(("none",)),
    "audio": NotOffered(),
    "function_call": NotOffered(("auto", "none"), "use tool_choice."),
    "functions": NotOffered(([],), "use tools."),
    "modalities": NotOffered((["text"],)),
    "prediction": NotOffered(),
    "verbosity": NotOffered(),
    "web_search_options": NotOffered(),
    "echo": NotOffered((False,), "only /v1/completions begins its text with the prompt."),
}
NOT_IN_RESPONSES: Mapping[str, NotOffered] = {
    **NOT_OFFERED,
    **dict.fromkeys(
        ("access_programs", "background_options", "context_management", "conversation", "image", "max_tool_calls"),
        NotOffered(),
    ),
    "background": NotOffered((False,)),
    "previous_response_id": NotOffered((), "nothing is stored here; send the whole conversation."),
    "prompt": NotOffered((), "send the text as input."),
    "reasoning": NotOffered(({}, {"effort": "none"})),
    "truncation": NotOffered(("disabled",)),
    "n": NotOffered((1,), "a response is one text; /v1/chat/completions gives several."),
    "echo": NotOffered((False,), "only /v1/completions begins its text with the prompt."),
    "return_token_ids": NotOffered((False,), "/v1/chat/completions gives them."),
}


@dataclass(frozen=True)
class Route:
    """What a body may have on one route. prompt: the field that holds the prompt. renamed: field -> the setting that it is
    here. without: settings that are no fields here, since the route says them in its own way."""

    path: str
    prompt: str
    fields: Mapping[str, BodyField]
    not_offered: Mapping[str, NotOffered]
    renamed: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def settings(self) -> dict[str, str]:
        """Field -> the setting of the registry that it is, with the names of other libraries."""
        said = {name: own for name, own in declared().items() if own.kind.schema() is not None}
        names = {**{name: name for name in said}, **{a: name for a, name in aliases().items() if name in said}}
        free = {
            name: own
            for name, own in names.items()
            if name not in self.not_offered and name not in self.without and own not in self.without
        }
        return {**free, **self.renamed}

    def read(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The route's own fields, and the settings by the names under which they were given; null counts as not given. Raises
        Failure, which names the field."""
        own: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        known = self.settings()
        for name, value in _with_extras(body).items():
            if value is None:
                continue
            if name in self.fields:
                own[name] = self._checked(name, self.fields[name].kind, value)
            elif name in known:
                settings[name] = 0 if (name, value) == ("top_k", -1) else value  # vLLM's word for all
                self._check_setting(name, known[name], settings[name])
            elif name in self.not_offered:
                self._check_neutral(name, value)
            else:
                every = {*self.fields, *known, *self.not_offered}
                raise bad_field(
                    name, f"{_shown(name)} is no field of {self.path}; {near(name[:100], every)}", "unknown_field"
                )
        return own, settings

    def check(self, settings: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
        """The settings by their names in the registry, checked for a model of so many tokens. Raises Failure."""
        known = self.settings()
        given: dict[str, str] = {}
        for name, value in settings.items():
            setting = known[name]
            if setting in given:
                raise bad_field(name, f"{given[setting]} and {name} mean the same; give one of them.")
            given[setting] = name
            self._check_setting(name, setting, value, vocabulary)
        return {known[name]: value for name, value in settings.items()}

    def schema(self) -> dict[str, Any]:
        """The body as a JSON schema."""
        properties: dict[str, Any] = {
            name: {**(own.kind.schema() or {}), "description": own.help} for name, own in self.fields.items()
        }
        for name, setting in self.settings().items():
            own = declared()[setting]
            said = own.help if name == setting else f"The same as {setting}: {own.help}"
            properties[name] = {**(own.kind.schema() or {}), "description": said}
        return {"type": "object", "properties": properties, "required": [self.prompt], "additionalProperties": False}

    def _checked(self, name: str, kind: ValueKind, value: Any) -> Any:
        try:
            return kind.check(name, value, ANY_VOCABULARY)
        except BadSetting as error:
            raise bad_field(name, str(error)) from None

    def _check_setting(self, name: str, setting: str, value: Any, vocabulary: int = ANY_VOCABULARY) -> None:
        specs = value if isinstance(value, list) else [value]
        if setting in SPECS and any(isinstance(spec, str) and len(spec) > LONGEST_SPEC for spec in specs):
            raise bad_field(name, f"{name} may have {LONGEST_SPEC} characters, which this one exceeds.")
        if setting == "session" and isinstance(value, str) and len(value) > LONGEST_WORD:
            raise bad_field(name, f"{name} may have {LONGEST_WORD} characters, and this one has {len(value)}.")
        try:
            declared()[setting].convert(value, vocabulary)
        except BadSetting as error:
            raise bad_field(name, str(error)) from None

    def _check_neutral(self, name: str, value: Any) -> None:
        refused = self.not_offered[name]
        if not any(type(value) is type(good) and value == good for good in refused.neutral):
            instead = f": {refused.instead}" if refused.instead else "."
            raise bad_field(name, f"{name} is not offered here{instead}", "unsupported_field")


def _with_extras(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body with what stands in vllm_xargs beside the other fields."""
    extras = body.get("vllm_xargs")
    if not isinstance(extras, dict):
        return dict(body)
    for name in extras:
        if name in ("vllm_xargs", "model", "stream", "messages", "prompt", "input") or body.get(name) is not None:
            raise bad_field("vllm_xargs", f"vllm_xargs gives {_shown(name)}, which has its place beside it.")
    return {**body, **extras}


_shown = partial(shown, most=100)

CHAT = Route(
    "/v1/chat/completions",
    "messages",
    {
        **COMMON,
        "messages": BodyField(
            Anything(type="array", items={"type": "object"}, minItems=1),
            "The conversation: role and content each; contents are strings or parts of text. The role developer is system.",
        ),
        "stream_options": STREAM_OPTIONS,
        "logprobs": BodyField(Flag(), "Tell the log probability of each token."),
        "top_logprobs": BodyField(Whole(0, 20), "So many alternatives per token; needs logprobs."),
        "return_token_ids": RETURN_TOKEN_IDS,
        **TOOLS,
    },
    NOT_IN_CHAT,
    without=("logprobs", "echo"),
)
COMPLETIONS = Route(
    "/v1/completions",
    "prompt",
    {
        **COMMON,
        "prompt": BodyField(
            Anything(
                anyOf=[
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                    {"type": "array", "items": {"type": "integer"}},
                    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                ]
            ),
            "A text, token ids, or a list of either.",
        ),
        "suffix": BodyField(
            Text(),
            "What stands behind the text that is filled in, of models with marks for it, and of insertion models.",
        ),
        "stream_options": STREAM_OPTIONS,
        "best_of": BodyField(Whole(1), "Taken where it equals n; a choice among more texts is not offered."),
        "return_token_ids": RETURN_TOKEN_IDS,
    },
    NOT_OFFERED,
    without=("top_logprobs",),
)
RESPONSES = Route(
    "/v1/responses",
    "input",
    {
        **COMMON,
        "input": BodyField(
            Anything(anyOf=[{"type": "string"}, {"type": "array", "items": {"type": "object"}}]),
            "What the user says, or the messages of a conversation.",
        ),
        "instructions": BodyField(Text(), "A system message before the input."),
        "include": BodyField(
            Anything(type="array", items={"const": "message.output_text.logprobs"}),
            "message.output_text.logprobs: tell the log probability of each token.",
        ),
        "top_logprobs": BodyField(Whole(0, 20), "So many alternatives per token."),
        "stream_options": BodyField(JsonObject(), "Nothing that it may say is offered but include_obfuscation=false."),
        **TOOLS,
    },
    NOT_IN_RESPONSES,
    renamed={"max_output_tokens": "max_new_tokens", "text": "structured_outputs"},
    without=("logprobs", "echo", "n"),
)
EVENTS = Route(
    "/v1/decodery/events",
    "prompt",
    {
        **{name: COMMON[name] for name in ("model", "method", "user")},
        "prompt": BodyField(
            Anything(
                anyOf=[
                    {"type": "string"},
                    {"type": "array", "items": {"type": "integer"}},
                    {"type": "array", "items": {"type": "object"}},
                ]
            ),
            "A text, token ids, or the messages of a conversation.",
        ),
    },
    {
        "stream": NotOffered((True,), "this route always streams."),
        "echo": NotOffered((False,), "only /v1/completions begins its text with the prompt."),
    },
    without=("top_logprobs",),
)
ROUTES = (CHAT, COMPLETIONS, RESPONSES, EVENTS)
