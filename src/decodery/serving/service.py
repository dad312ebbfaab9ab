"""What a server consists of, and what its routes do. The routes themselves are in `app.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from decodery.engine.memory import parse_size
from decodery.engine.registry import methods
from decodery.errors import BadPrompt, ConstraintFailed, MethodUnavailable, Refused
from decodery.serving import detection, page
from decodery.serving.asked import read, read_json
from decodery.serving.chat import ChatShape
from decodery.serving.completions import CompletionShape
from decodery.serving.configuration import ServerConfiguration
from decodery.serving.decoding import begin, finished
from decodery.serving.events import EventShape
from decodery.serving.failures import Failure, bad_field
from decodery.serving.fields import CHAT, COMPLETIONS, EVENTS, RESPONSES, Route
from decodery.serving.hosts import AllowedHosts
from decodery.serving.keys import KeyRing
from decodery.serving.responses import ResponseShape
from decodery.serving.served_models import Load, ServedModel, ServedModels
from decodery.serving.server_metrics import ServerMetrics
from decodery.serving.shapes import AnswerShape, StreamShape, frames
from decodery.serving.transport import EventStream, Json, read_body, watched
from decodery.serving.visit import Visit

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

log = logging.getLogger("decodery.serving")

SHAPES: Mapping[str, type[StreamShape]] = {
    CHAT.path: ChatShape,
    COMPLETIONS.path: CompletionShape,
    RESPONSES.path: ResponseShape,
    EVENTS.path: EventShape,
}
RETRY = {"Retry-After": "5"}


class Service:
    """One server. load: in place of `decodery.load`. environment: where an API key may stand."""

    def __init__(
        self, configuration: ServerConfiguration, load: Load | None = None, environment: Mapping[str, str] | None = None
    ):
        self.configuration = configuration
        self.models = ServedModels(configuration, load)
        self.keys = KeyRing.of(
            configuration.api_key_file,
            os.environ if environment is None else environment,
            configuration.max_concurrent_per_key,
        )
        self.hosts = AllowedHosts(configuration)
        self.metrics = ServerMetrics(self.models)
        self.active = 0
        """HTTP requests that are not answered yet."""
        self.draining = False
        self.started_at = int(time.time())
        self._most_body = parse_size("max_body", configuration.max_body)

    async def start(self) -> None:
        """Load the first model. Raises what loading raises."""
        await self.models.start(self.models.first)

    async def close(self) -> None:
        """End what still runs."""
        await self.models.close()

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs, as long as the configuration says."""
        self.draining = True
        log.info("draining: %d requests still run", self.active)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.configuration.drain):
                while self.active:
                    await asyncio.sleep(0.02)
        log.info("drained" if not self.active else f"ending {self.active} requests that have not finished")
        for model in self.models.loaded.values():
            model.gate.close(_shutting_down())
            model.engine.end_all()

    def check_open(self) -> None:
        """Raise Failure (503) where nothing new is taken."""
        if self.draining:
            raise _shutting_down()

    # What is decoded

    async def decode(self, request: Request, route: Route) -> Response:
        """Answer a request of one of the routes for text."""
        body = await self._body(request)
        visit: Visit = request.scope["visit"]
        asked = read(route, body)
        visit.told |= {"user": asked.own.get("user"), "stream": asked.stream}
        if self.configuration.log_prompts:
            visit.told["prompt"] = asked.prompts
        left = self.configuration.timeout

        async def begun() -> StreamShape:
            try:
                async with asyncio.timeout(left):
                    decoding = await begin(asked, visit, self.models, self.metrics, self.configuration)
            except TimeoutError:
                raise Failure(504, "the request waited longer than this server allows.") from None
            return SHAPES[route.path](decoding)

        async def whole() -> dict[str, Any]:
            shape = await begun()
            assert isinstance(shape, AnswerShape)
            seconds = visit.arrived + left - time.perf_counter()
            with contextlib.closing(shape.decoding):
                return shape.whole(await finished(shape.decoding, seconds))

        if not asked.stream:
            return Json(await watched(whole(), request.receive))
        shape = await watched(begun(), request.receive)
        late = Failure(504, "the request took longer than this server allows.")
        return EventStream(
            frames(shape),
            visit.arrived + left - time.perf_counter(),
            lambda: b"".join(shape.failed(late)),
            shape.decoding.close,
        )

    # What is told

    def ready(self) -> bool:
        """Whether requests are taken, and the first model is there."""
        return not self.draining and bool(self.models.loaded)

    def listed(self, name: str) -> dict[str, Any]:
        """A model, as OpenAI lists it."""
        model = self.models.loaded.get(name)
        told: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self.started_at if model is None else model.loaded_at,
            "owned_by": "decodery",
        }
        if model is None or model.leaving:
            return {**told, "decodery": {"loaded": False}}
        lm: LanguageModel = model.lm
        return {
            **told,
            "max_model_len": lm.network.context,
            "decodery": {
                "loaded": True,
                "kind": lm.network.kinds.words,
                "default_method": lm.default_method,
                "methods": [info.name for info in methods() if info.suits(lm.network.kinds)],
                "path": lm.network.path,
                "chat": bool(getattr(lm.tokenizer, "chat_template", None)),
            },
        }

    async def tokenize(self, request: Request) -> dict[str, Any]:
        """vLLM's /tokenize."""
        body = await self._body(request)
        _only(body, ("model", "prompt", "messages", "add_special_tokens", "return_token_strs"), "/tokenize")
        if (body.get("prompt") is None) == (body.get("messages") is None):
            raise bad_field("prompt", "give prompt, a text, or messages, a conversation.")
        special = _flag(body, "add_special_tokens", True)
        async with self._model(body) as model:
            prompt, name = body.get("prompt"), "prompt"
            if prompt is None:
                name, prompt = "messages", body["messages"]
                _check_messages(prompt)
                if "add_special_tokens" in body:
                    raise bad_field("add_special_tokens", "the chat template decides on special tokens.")
            elif not isinstance(prompt, str):
                raise bad_field(name, "prompt must be a text.")
            try:
                if special:
                    ids = await model.tokens(prompt) if prompt else []
                else:
                    ids = await asyncio.to_thread(model.lm.encode, prompt)
            except BadPrompt as error:
                raise bad_field(name, str(error)) from None
            told = {"count": len(ids), "max_model_len": model.lm.network.context, "tokens": ids}
            if _flag(body, "return_token_strs", False):
                told["token_strs"] = [model.lm.tokenizer.decode([token]) for token in ids]
            return told

    async def next_byte(self, request: Request) -> dict[str, Any]:
        """What a model says of the byte after a prompt: see `LanguageModel.next_byte`."""
        body = await self._body(request)
        _only(body, ("model", "prompt", "messages", "top", "fast"), "/v1/decodery/next_byte")
        prompt: Any = body.get("prompt")
        if (prompt is None) == (body.get("messages") is None):
            raise bad_field("prompt", "give prompt, a text, or messages, a conversation.")
        if prompt is not None and not isinstance(prompt, str):
            raise bad_field("prompt", "prompt must be a text.")
        if prompt is None:
            _check_messages(body["messages"])
        top, fast = body.get("top", 10), _flag(body, "fast", False)
        if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= 256:
            raise bad_field("top", "top must be a number of bytes, 1 to 256.")
        async with self._model(body) as model:
            asked = body["messages"] if prompt is None else prompt
            try:
                found = await asyncio.to_thread(model.lm.next_byte, asked, fast=fast)
            except (BadPrompt, Refused, MethodUnavailable, ConstraintFailed) as error:
                raise bad_field("messages" if prompt is None else "prompt", str(error)) from None
            likeliest = [{"byte": byte[0], "probability": value} for byte, value in found.top(top) if value > 0]
            return {"next": likeliest, "end": found.end, "leak": found.leak, "forwards": found.forwards}

    async def settle(self, request: Request) -> dict[str, Any]:
        """How a method is written with some values of its parameters, and which of them act."""
        body = await self._body(request)
        _only(body, ("name", "values"), "/v1/decodery/method")
        return page.settled(body.get("name"), body.get("values", {}))

    async def detect(self, request: Request) -> dict[str, Any]:
        """What `decodery detect` says of a text."""
        body = await self._body(request)
        _only(body, ("model", *detection.FIELDS), "/v1/decodery/detect")
        async with self._model(body) as model:
            return await asyncio.to_thread(detection.detected, body, model.lm)

    async def detokenize(self, request: Request) -> dict[str, Any]:
        """vLLM's /detokenize."""
        body = await self._body(request)
        _only(body, ("model", "tokens"), "/detokenize")
        async with self._model(body) as model:
            ids, most = body.get("tokens"), model.lm.network.vocabulary
            if not isinstance(ids, list) or any(type(token) is not int or not 0 <= token < most for token in ids):
                raise bad_field("tokens", f"tokens must be a list of token ids, 0 to {most - 1}.")
            return {"prompt": await asyncio.to_thread(model.lm.tokenizer.decode, ids)}

    async def tokenizer_info(self, request: Request) -> dict[str, Any]:
        """The special tokens and the chat template of a model's tokenizer, by vLLM's names; null where it has none."""
        _only(request.query_params, ("model",), "/tokenizer_info")
        async with self._model(request.query_params) as model:
            said = {name: getattr(model.lm.tokenizer, name, None) for name in TOKENIZER_INFO}
            return {"model": model.name, "max_model_len": model.lm.network.context, **said}

    @contextlib.asynccontextmanager
    async def _model(self, body: Mapping[str, Any]) -> Any:
        name = body.get("model")
        if name is not None and not isinstance(name, str):
            raise bad_field("model", "model must be a string.")
        model: ServedModel = await self.models.use(name)
        try:
            yield model
        finally:
            model.release()

    async def _body(self, request: Request) -> dict[str, Any]:
        return read_json(await read_body(request, self._most_body))


TOKENIZER_INFO = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template")


def _check_messages(messages: Any) -> None:
    """Raise Failure unless these are messages."""
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise bad_field("messages", "messages must be a list of at least one message.")


def _shutting_down() -> Failure:
    return Failure(503, "the server is shutting down.", code="shutting_down", headers=RETRY)


def _only(body: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
    for name in body:
        if name not in known:
            raise bad_field(name, f"{name[:100]!r} is no field of {path}; known: {', '.join(known)}.", "unknown_field")


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad_field(name, f"{name} must be true or false.")
    return value
