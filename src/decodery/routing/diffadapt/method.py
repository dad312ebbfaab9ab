"""DiffAdapt: a probe looks at the question's last hidden row, and how hard it seems decides how it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from decodery.engine.method import Decoding, Exactness, Method, admit, parameter
from decodery.engine.needs import NEXT_TOKENS, Artifact, Requirement, Taps
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, MethodUnavailable
from decodery.models.forward import POST_NORM, Forward, Rows

if TYPE_CHECKING:
    from decodery.engine.request import Request
    from decodery.models.heads import HeadNetwork
    from decodery.models.scorer import Scorer
    from decodery.routing.diffadapt.strategies import Policy, Router, Strategy


@dataclass(frozen=True)
class DiffAdapt(Method):
    """Answer a question directly, with a line of reasoning, or by a short plan, each with its own temperature and share of the
    tokens: as a trained probe of the question's hidden row says. Nothing happens during decoding."""

    name: ClassVar[str] = "diffadapt"
    title: ClassVar[str] = "DiffAdapt"
    paper: ClassVar[str] = (
        "Liu et al., DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference, ICLR 2026, arXiv 2510.19669"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING
    family: ClassVar[str] = "routing"
    example: ClassVar[str] = "diffadapt(strategy=normal)"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        Taps(),
        Artifact("a probe of the model (shipped for smollm2-135m), or a named strategy"),
    )
    refuses: ClassVar[Mapping[str, str]] = {
        "temperature": "each strategy has its own",
        "echo": "it puts text of its own around the prompt",
        "target": "the probe reads hidden rows of one model, which several members together do not have",
        "chance": "the prompt goes on after its first draws are prepared, and this source looks at the prompt",
    }

    strategy: str = parameter(
        "auto", "auto: what the probe chooses; else always this one", choices=("auto", "easy", "normal", "hard")
    )
    probe: str = parameter(
        "auto",
        "folder that `decodery train diffadapt` made; auto: the one shipped for the model, or, for a named strategy, none",
        names="file",
    )
    fallback: float = parameter(
        0.0,
        "answer in the normal way where no class is as likely as this",
        low=0.0,
        high=1.0,
        only={"strategy": "auto"},
    )
    method: str = parameter(
        "autoregressive", "what decodes the answer; in quotes where it has parameters", names="method"
    )

    def check(self) -> None:
        inner = self.inner
        if inner.together or NEXT_TOKENS not in inner.needs or isinstance(inner, DiffAdapt):
            raise BadParameter(
                f"{self.name}: {inner.name} cannot decode the answer; name another method that decodes one text of a causal "
                "model."
            )

    @property
    def inner(self) -> Method:
        """What decodes the answer."""
        return as_method(self.method)

    def admit(self, request: Request) -> None:
        self.router(request)
        admit(self.inner, request)

    def router(self, request: Request) -> Router | None:
        """The probe and its policy, read once; None for a named strategy without a probe. Raises MethodUnavailable."""
        from decodery.routing.diffadapt.strategies import Router, shipped

        network = request.host.network
        fingerprint = network.fingerprint()

        def read() -> Router | None:
            folder = shipped(fingerprint) if self.probe == "auto" else Path(self.probe).expanduser()
            return None if folder is None else Router.read(folder)

        found = request.remember((self.name, self.probe, fingerprint), read, everywhere=True)
        if found is None and self.strategy == "auto":
            raise MethodUnavailable(
                f"{self.name}: there is no probe for {network.name}; train one with `decodery train diffadapt`, or name a "
                "strategy, as in diffadapt(strategy=normal)."
            )
        if found is not None and found.fingerprint != fingerprint:
            raise MethodUnavailable(
                f"{self.name}: the probe in {self.probe} was trained for the model {found.fingerprint}, and {network.name} is "
                f"{fingerprint}."
            )
        return found

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        policy, encode = self.policy(request), request.host.encode
        longest = max(len(encode(policy.of(name).suffix)) for name in ("easy", "normal", "hard"))
        more = longest + len(self._preamble(request, policy))
        return [(network, rows + more) for network, rows in self.inner.caches(request)]

    def policy(self, request: Request) -> Policy:
        """The strategies: those that the probe was trained with, else the usual ones without worked examples."""
        from decodery.routing.diffadapt.strategies import Policy

        router = self.router(request)
        return Policy() if router is None else router.policy

    def _preamble(self, request: Request, policy: Policy) -> list[int]:
        return request.host.encode(policy.preamble) if policy.preamble else []

    def _neutral(self, request: Request, policy: Policy) -> list[int]:
        """The prompt with the worked examples before it, but behind the token that every text begins with, if there is one."""
        start = getattr(request.host.tokenizer, "bos_token_id", None)
        front = int(request.prompt[0] == start)
        return [*request.prompt[:front], *self._preamble(request, policy), *request.prompt[front:]]

    def decode(self, request: Request) -> Decoding:
        router, policy, host = self.router(request), self.policy(request), request.host
        # 1. The neutral prompt, which ends with the question's last token, is a beginning of every strategy's prompt. Only its
        #    last row is looked at, so that others may share the rows before it.
        neutral = self._neutral(request, policy)
        sequence = request.new_sequence()
        if len(neutral) > 1:
            yield Forward(sequence, neutral[:-1], logits=Rows.NONE)
        scores = yield Forward(sequence, neutral[-1:], taps=(POST_NORM,), logits=Rows.NONE)
        # 2. One call of the probe.
        name, details = self.strategy, request.statistics.details
        if router is not None:
            from decodery.routing.diffadapt.strategies import CLASSES, choose

            head: HeadNetwork = request.remember(
                (self.name, "head", self.probe, request.network.name), lambda: self._head(router), everywhere=True
            )
            answer = yield Forward(head.new_sequence(), scores.hidden[POST_NORM][-1:].float())
            probabilities = answer.logits[0].float().softmax(dim=-1)
            details["probabilities"] = dict(zip(CLASSES, probabilities.tolist(), strict=True))
            if name == "auto":
                name = choose(probabilities, self.fallback)
        strategy: Strategy = policy.of(name)
        details["strategy"] = name
        # 3. From here on it is an ordinary request with the strategy's prompt, temperature and budget.
        budget = strategy.budget(request.settings.max_new_tokens)
        request.begin_again(
            [*neutral, *host.encode(strategy.suffix)],
            sequence,
            temperature=strategy.temperature,
            max_new_tokens=budget,
            min_new_tokens=min(request.settings.min_new_tokens, budget),
            stop=(*request.settings.stop, policy.stop),
        )
        yield from self.inner.decode(request)
        details["truncated"] = request.finish_reason == "length"

    def _head(self, router: Router) -> HeadNetwork:
        from decodery.models.heads import HeadNetwork
        from decodery.routing.diffadapt.strategies import CLASSES

        return HeadNetwork(router.probe, len(router.probe.mean), len(CLASSES), "diffadapt probe")
