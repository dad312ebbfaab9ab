"""Set-based prompting: options, documents or examples of a prompt are read as a set, so that their order means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, Method, admit, parameter
from decodery.engine.needs import NEXT_TOKENS
from decodery.engine.prompt_layout import END, SPLIT, START, Arrangement
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, BadPrompt, Refused

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class SetBasedPrompting(Method):
    """Reads what a prompt marks as a set without regard to its order, and decodes with any method: each part of the set begins
    at the same position and sees no other, and what follows sees all of them."""

    name: ClassVar[str] = "set-based-prompting"
    title: ClassVar[str] = "Set-based prompting"
    paper: ClassVar[str] = (
        "McIlroy-Young et al., Order-Independence Without Fine Tuning (Set-Based Prompting), NeurIPS 2024, arXiv 2406.06581 "
        "(github reidmcy/set-based-prompting)"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "search"

    method: str = parameter("autoregressive", "what decodes; in quotes where it has parameters", names="method")
    order: str = parameter(
        "canonical",
        "in which the parts of a set are read: by length and token ids, so that not even rounding depends on the order given; "
        "as given; or reversed",
        choices=("canonical", "given", "reversed"),
    )
    edit: str = parameter(
        "both",
        "what is edited: who sees whom and the positions; one of them; or neither, which is an ordinary prompt",
        choices=("both", "attention", "positions", "none"),
    )

    def check(self) -> None:
        inner = self.inner
        if inner.together or inner.arrangement is not None or NEXT_TOKENS not in inner.needs:
            raise BadParameter(
                f"{self.name}: {inner.name} cannot decode after a set; name a method that decodes one text of a causal model."
            )

    @property
    def inner(self) -> Method:
        """What decodes."""
        return as_method(self.method)

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement(self.order, self.edit in ("both", "attention"), self.edit in ("both", "positions"))

    def admit(self, request: Request) -> None:
        from decodery.engine.composed import ComposedNetwork

        if request.layout is None and any(
            mark in request.host.tokenizer.decode(list(request.prompt)) for mark in (START, SPLIT, END)
        ):
            raise BadPrompt(
                f"{self.name} was given the token ids of a prompt with marks; give its text, or the ids that "
                "`tokenize(prompt, method=…)` gives of it."
            )
        if request.layout is not None and isinstance(request.network, ComposedNetwork):
            others: Sequence[str] = [m.network.name for m in request.network.others if m.prompt is not None]
            if others:
                raise Refused(
                    f"{self.name} does not run with the target {request.network.target.name}, which reads a prompt of its own, "
                    "in which there is no set."
                )
        admit(self.inner, request)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        return self.inner.caches(request)

    def decode(self, request: Request) -> Decoding:
        yield from self.inner.decode(request)
