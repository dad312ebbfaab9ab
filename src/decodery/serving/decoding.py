"""A request on its way: admitted, begun on the engine of its model, and told of when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from decodery._version import __version__
from decodery.errors import DecoderyError
from decodery.evaluation.provenance import provenance
from decodery.serving import spans
from decodery.serving.asked import COMPLETION_TOKENS, DEFAULT_TEMPERATURE, AskedText
from decodery.serving.failures import Failure, failure_of
from decodery.serving.fields import COMPLETIONS, EVENTS
from decodery.serving.keys import ANYBODY
from decodery.serving.reply_metrics import reply_metrics
from decodery.serving.served_models import NotLent, ServedModel, ServedModels
from decodery.serving.visit import Visit

if TYPE_CHECKING:
    from decodery.engine.events import Event
    from decodery.language_model import LanguageModel
    from decodery.replies import Prepared, Reply
    from decodery.serving.configuration import ServerConfiguration
    from decodery.serving.engine_thread import Job
    from decodery.serving.server_metrics import ServerMetrics

log = logging.getLogger("decodery.serving")


class Decoding:
    """A request whose job has begun."""

    def __init__(
        self, asked: AskedText, visit: Visit, model: ServedModel, job: Job, configuration: ServerConfiguration
    ):
        self.asked, self.visit, self.job = asked, visit, job
        self.lm: LanguageModel = model.lm
        self.model = model.name
        self.created = int(time.time())
        self.number = uuid.uuid4().hex[:24]
        """What ids of answers end with."""
        self._detail = configuration.request_metrics
        self._held: ServedModel | None = model

    def close(self) -> None:
        """The answer is sent, or nobody wants it: what still runs ends, and the model may go. Harmless where it is closed."""
        self.job.cancel()
        if self._held is not None:
            self._held.release()
            self._held = None

    async def replies(self) -> list[Reply]:
        """All replies, once it is over. Raises Failure where one of them failed."""
        await self.job.over.wait()
        assert self.job.prepared is not None
        replies = self.job.prepared.replies()
        errors = [self.job.error, *(reply.error for reply in replies)]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            raise self.failure(error)
        if any(reply.finish_reason == "cancelled" for reply in replies):
            raise Failure(503, "the server has ended this request, since it is shutting down.")
        return replies

    def failure(self, error: Exception) -> Failure:
        """The answer to an error of the decoding, which is logged where it is not the request's own."""
        failure = failure_of(error, self.asked.names, self.asked.route.prompt, self.visit.id)
        if failure.status >= 500 and not isinstance(error, Failure):
            known = isinstance(error, DecoderyError)
            log.error("request %s failed: %s", self.visit.id, error, exc_info=None if known else error)
        return failure

    def told(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """What stands under `decodery` in an answer."""
        first = replies[0]
        told: dict[str, Any] = {
            "method": first.method,
            "exactness": str(first.exactness),
            "seed": first.seed,
            "order": list(first.order),
            "provenance": {**provenance(self.lm, whole=False), "version": __version__},
            "metrics": reply_metrics(replies, self._detail),
        }
        for name in ("weight", "score"):
            values = [getattr(reply, name) for reply in replies]
            if any(value is not None for value in values):
                told[name] = values if len(values) > 1 else values[0]
        return told


async def begin(
    asked: AskedText,
    visit: Visit,
    models: ServedModels,
    metrics: ServerMetrics,
    configuration: ServerConfiguration,
) -> Decoding:
    """Admit a request and begin it. Its place and its keys and values are let go when its job is over, read or not; its model
    when it is closed, since answers are made with it. Raises Failure, and then it holds nothing."""
    if len(asked.prompts) * asked.n > configuration.max_texts:
        texts = f"{len(asked.prompts)} prompts with {asked.n} texts each"
        raise Failure(
            400,
            f"{texts} are more than the {configuration.max_texts} texts that a request may have.",
            asked.names.get("n", "n"),
        )
    with contextlib.ExitStack() as held:
        model = await models.use(asked.model)
        held.callback(model.release)
        visit.told |= {"model": model.name}
        settings = _settings(asked, visit, model.lm)
        await model.gate.enter()
        began = time.perf_counter()
        place = held.enter_context(contextlib.ExitStack())
        place.callback(lambda: model.gate.leave(time.perf_counter() - began))
        queued = began - visit.arrived
        try:
            job = await _begun(settings, asked, model, configuration)
        except Exception as error:
            failure = failure_of(error, asked.names, asked.route.prompt, visit.id)
            if isinstance(error, NotLent) and error.model in str(asked.settings.get("target")):
                failure.param = "target"
            if failure.status >= 500:
                log.error("request %s failed: %s", visit.id, error, exc_info=error)
            raise failure from error
        place.callback(lambda: spans.note_decoding(visit, model.name, job))
        # Counted first, so that who sees the place free finds it counted; and were it to fail, the place is free all the same.
        place.callback(lambda: metrics.decoded(model.name, job, visit, queued))
        job.when_over(place.pop_all().close)
        held.pop_all()  # from here on the model is the decoding's
        return Decoding(asked, visit, model, job, configuration)


async def _begun(
    settings: dict[str, Any], asked: AskedText, model: ServedModel, configuration: ServerConfiguration
) -> Job:
    """Read the prompts, check the rest, and begin. Raises what is wrong with the request."""
    lm = model.lm
    ids = [await model.tokens(prompt, asked) for prompt in asked.prompts]
    _complete(settings, asked, ids, lm, configuration)
    seed = settings.pop("seed", None)
    prompt: Any = ids if len(ids) > 1 else ids[0]

    def prepare(listener: Callable[[Event], None]) -> Prepared:
        return lm.prepare(prompt, asked.method, listener, seed=seed, **settings)

    return await model.engine.submit(prepare, settings["session"], whole=asked.route is EVENTS)


def _settings(asked: AskedText, visit: Visit, lm: LanguageModel) -> dict[str, Any]:
    """The settings of the registry, checked for the model's vocabulary; a session is the caller's own."""
    settings = asked.route.check(asked.settings, lm.network.vocabulary)
    settings.setdefault("temperature", DEFAULT_TEMPERATURE)
    if asked.logprobs is not None:
        settings["logprobs"] = asked.logprobs
    session = settings.get("session", "default")
    settings["session"] = session if visit.caller.name == ANYBODY else f"{visit.caller.name}/{session}"
    return settings


def _complete(
    settings: dict[str, Any],
    asked: AskedText,
    ids: Sequence[Sequence[int]],
    lm: LanguageModel,
    configuration: ServerConfiguration,
) -> None:
    """Say how many new tokens there may be, where the request does not."""
    if "max_new_tokens" not in settings:
        most = COMPLETION_TOKENS if asked.route is COMPLETIONS else configuration.default_max_tokens
        room = lm.network.context - max(len(prompt) for prompt in ids)
        given = max(len(lm.split_at_hole(prompt)[1]) for prompt in ids)
        settings["max_new_tokens"] = max(1, settings.get("min_new_tokens", 0), min(most, room), given)


async def finished(decoding: Decoding, seconds: float) -> list[Reply]:
    """The replies, or Failure (504) after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await decoding.replies()
    except TimeoutError:
        raise Failure(504, "the request took longer than this server allows.") from None
