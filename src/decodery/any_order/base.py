"""What methods of any-order models share: their window, what they refuse, and the check of a request."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.any_order.window import OrderedWindow
from decodery.diffusion.base import DiffusionMethod
from decodery.diffusion.loop import model_of
from decodery.engine.method import Decoding, Method, parameter
from decodery.engine.needs import ANY_ORDER, Requirement
from decodery.errors import BadPrompt, BadSetting, Refused

if TYPE_CHECKING:
    from collections.abc import Generator

    from decodery.engine.request import Request
    from decodery.models.forward import Forward, Scores
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class AnyOrderMethod(Method):
    """Base of methods that fill a window in ascending order, given whatever stands before and behind. A subclass gives
    `fill_in`."""

    family: ClassVar[str] = "any-order"
    needs: ClassVar[tuple[Requirement, ...]] = (ANY_ORDER,)
    refuses: ClassVar[Mapping[str, str]] = {
        **DiffusionMethod.refuses,
        "structured_outputs": "text that is given behind a hole would have to be looked at before the hole is filled",
        "target": "laws of several models are put together for texts from left to right alone",
    }

    gen_length: int | None = parameter(
        None,
        "positions behind the prompt",
        low=1,
        auto="none behind a prompt with holes, otherwise the model's canvas, at most max_new_tokens",
    )
    cache: str = parameter(
        "ranks",
        "keys and values of decided tokens are kept, or all rows are computed in each forward",
        choices=("ranks", "none"),
    )

    @abstractmethod
    def fill_in(self, request: Request, window: OrderedWindow) -> Generator[Forward, Scores, None]:
        """Decide targets until the window is over."""

    def length(self, request: Request) -> int:
        """How many positions a request has behind its prompt, given ones included."""
        if request.template:
            return len(request.template) + (self.gen_length or 0)
        return self.gen_length or min(model_of(request).canvas, request.settings.max_new_tokens)

    def admit(self, request: Request) -> None:
        model, settings, template = model_of(request), request.settings, request.template
        length, network = self.length(request), request.host.network
        if len(request.prompt) + length > network.context:
            raise BadPrompt(
                f"prompt and canvas have {len(request.prompt) + length} positions together, but {network.name} has a context "
                f"of {network.context}."
            )
        reserved = set(template) & {*model.reserved} - {model.mask_token_id}
        if reserved:
            raise BadPrompt(f"token {min(reserved)} is reserved and cannot stand behind a hole of the prompt.")
        if len(template) > settings.max_new_tokens:
            raise BadSetting(
                f"max_new_tokens is {settings.max_new_tokens}, but from its first hole on the prompt has {len(template)} "
                "tokens, which are part of the answer; give at least as many."
            )
        if length < settings.min_new_tokens:
            raise BadSetting(
                f"min_new_tokens is {settings.min_new_tokens}, but the canvas has only {length} positions."
            )
        if settings.logprobs is not None and set(template) - {model.mask_token_id}:
            raise Refused(
                f"{self.name} does not run with logprobs and text behind a hole, which was given and not scored."
            )
        if settings.echo and settings.logprobs is not None:
            raise Refused(
                f"{self.name} does not run with echo and logprobs together: the tokens of a prompt are never scored."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return [(request.host.network, len(request.prompt) + self.length(request) + self.borrowed)]

    @property
    def borrowed(self) -> int:
        """Rows of queries that stand behind those of tokens during a forward."""
        return 1

    def decode(self, request: Request) -> Decoding:
        window = OrderedWindow(request, self.length(request), self.cache == "ranks")
        yield from self.fill_in(request, window)
        window.finish()
