"""A draft model of any tokenizer, verified in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from decodery._lazy import torch
from decodery.bytewise.byte_level_probabilities import check_bytes, extra_rows, member
from decodery.bytewise.mixture import ByteMixture, companion
from decodery.bytewise.reader import ByteReader
from decodery.bytewise.vocabulary import ByteVocabulary
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import NEXT_TOKENS, Companion, MoreThanChains, Requirement
from decodery.models.kinds import Kind
from decodery.sampling.noise import Stage
from decodery.speculative.draft import Draft, Siblings, chain
from decodery.speculative.loop import ProcessedLaws

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.engine.asking import Asking
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer


@dataclass(frozen=True)
class ByteDraftModel(Method):
    """A small model of any tokenizer drafts bytes, the target verifies them with the rejection rule: the output has exactly the
    target's law of bytes, several bytes a pass."""

    name: ClassVar[str] = "byte-draft-model"
    title: ClassVar[str] = "Drafts verified in bytes"
    paper: ClassVar[str] = (
        "Phan et al., ICLR 2025, arXiv 2410.09303 (laws of bytes); Leviathan et al., ICML 2023, arXiv 2211.17192 (rejection)"
    )
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "speculative"
    needs: ClassVar[tuple[Requirement, ...]] = (
        NEXT_TOKENS,
        MoreThanChains("reads a text as trees of tokens"),
        Companion("draft", "a smaller model of any tokenizer", Kind.NEXT_TOKEN),
    )
    refuses: ClassVar = {
        "structured_outputs": "a grammar asks for the usual tokens of what must come, and here a token is a byte",
    }

    draft: str = parameter("stories-twin", "the model that drafts: a name or a folder")
    length: int = parameter(4, "bytes drafted per round", low=1, high=32)

    def admit(self, request: Request) -> None:
        check_bytes(request, self.name)
        companion(request.host, self.draft, self.name)

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        rows = len(request.prompt) + request.settings.max_new_tokens + extra_rows(request.host) + 2 * self.length
        network = request.host.companion(self.draft).network
        return [(request.network, rows), (network, min(rows + rows // 2, network.context))]

    def decode(self, request: Request) -> Decoding:
        from decodery.speculative.verifiers import verifier_for

        vocabulary = ByteVocabulary.of(request.host)
        sequence = request.new_sequence()
        yield from request.score_prompt(sequence)
        target = ByteMixture(request.host, [ByteReader(vocabulary, sequence, request.prompt)])
        drafter = self._drafter(request)
        leaks: list[float] = []
        details = request.statistics.details
        while True:
            done = len(target.readers[0].read)
            draft = yield from self._draft(request, drafter)
            request.drafted(draft.tokens, draft.parents)
            target.extend(draft.tokens)
            yield from target.score()
            rows: list[Tensor] = []
            for length in range(len(draft) + 1):
                # Behind a byte that the target does not give, which is refused, nobody looks.
                rows.append(target.row(done + length) if target.possible(done + length) else rows[-1])
                leaks.append(target.leak)
            scores = torch.stack(rows)
            verdict = verifier_for(draft, request.law.greedy).verify(
                draft, ProcessedLaws(request, draft, scores), request.noise, request.position
            )
            accepted = len(verdict.path)
            emitted = [*draft.tokens[:accepted], verdict.next_token]
            details.update(leak=sum(leaks) / len(leaks), most_leak=max(leaks), byte_forwards=target.forwards)
            if request.commit(emitted, scores[: accepted + 1], accepted=accepted):
                return
            for one in (target, drafter):
                one.cut(accepted)
            if not vocabulary.said[verdict.next_token]:
                target.special(verdict.next_token)
                drafter = self._drafter(request)
                continue
            for one in (target, drafter):
                one.extend([verdict.next_token])
                one.settle()

    def _drafter(self, request: Request) -> ByteMixture:
        """The draft model, behind the committed text."""
        other = companion(request.host, self.draft, self.name)
        return ByteMixture(request.host, [member(request, other, False)], own=False)

    def _draft(self, request: Request, drafter: ByteMixture) -> Asking[Draft]:
        """Bytes drawn one after the other from the draft model's law, processed as the target's is; its likeliest in greedy
        decoding. It drafts no end."""
        tokens: list[int] = []
        laws: dict[int, Tensor] = {}
        depth = min(self.length, request.remaining - 1)
        law = request.law.drafting
        silent = drafter.vocabulary.special.tolist()
        while len(tokens) < depth:
            yield from drafter.score()
            if not drafter.possible():
                break
            row = drafter.row()
            if law.greedy:
                token = law.likeliest(row, tokens)
                if token in silent:
                    break
            else:
                # Without the end, before anything is drawn: to stop where an end was drawn would bend the law.
                own = law.probabilities(row, tokens)
                own[silent] = 0
                if not float(own.sum()) > 0:
                    break
                laws[len(tokens) - 1] = own / own.sum()
                token = request.noise.choose(
                    laws[len(tokens) - 1], request.position + len(tokens), Stage.DRAFT, path=tokens
                )
            tokens.append(token)
            drafter.extend([token])
        if law.greedy:
            return chain(tokens)
        parents = list(range(-1, len(tokens) - 1))
        return Draft(tokens, parents, {place: laws[place] for place in parents}, Siblings.WITH_REPLACEMENT)
