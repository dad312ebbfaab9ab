"""What membership scores are computed from: texts, and changed ones, as models score them; each read once, when first
needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.audit.formulas import TokenRecord, recalled, swapped
from decodery.audit.neighbours import MaskedNeighbours
from decodery.errors import BadInput, Refused
from decodery.evaluation.intervals import Array

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.scoring import Scored

AT_ONCE = 16
"""Texts between two reports of progress."""
Tell = Callable[[str, int, int], None]
"""(what is done, how many are done, of how many)."""


@dataclass(frozen=True)
class ScoreOptions:
    """What the scores can be given beside the texts, with the published sizes.

    reference: a second model (ratio, diff). shots, member_shots: texts that are surely no members (recall), and members
    (con-recall). masked_model: folder of a masked language model; neighbours, candidates, dropout: of its substitutions.
    background: texts whose frequencies of tokens stand for the language's (dc-pdd). augmentations, swaps: of pac.
    samples, top_k, continued: of samia, the last being the most tokens of a text's beginning and its continuation.
    probe: texts that are surely no members; half of them are trained on to see what training leaves in hidden rows.
    """

    reference: LanguageModel | None = None
    shots: tuple[str, ...] = ()
    member_shots: tuple[str, ...] = ()
    masked_model: str = ""
    neighbours: int = 50
    candidates: int = 10
    dropout: float = 0.7
    background: tuple[str, ...] = ()
    augmentations: int = 10
    swaps: float = 0.3
    samples: int = 10
    top_k: int = 50
    continued: int = 1024
    probe: tuple[str, ...] = ()
    seed: int = 0


def silent(label: str, done: int, total: int) -> None:
    """Tells nobody."""


def recorded(scored: Scored) -> TokenRecord:
    """The tokens of a scored text that have a probability."""
    known = scored.logprobs.isfinite().nonzero()[:, 0].tolist()
    if not known:
        raise BadInput(f"the text {scored.text[:40]!r} has no token with a probability; leave out texts of one token.")
    first = known[0]
    moments = (None if part is None else part[first:].numpy() for part in (scored.entropies, scored.deviations))
    logprobs = scored.logprobs[first:].double().numpy()
    covered = len(scored.text[scored.spans[first][0] :].encode())
    return TokenRecord(scored.text, tuple(scored.token_ids[first:]), logprobs, covered, *moments)


@dataclass
class Evidence:
    """Texts, a model, and what was found out about them. Everything is in the order of the texts."""

    lm: LanguageModel
    texts: Sequence[str]
    options: ScoreOptions = field(default_factory=ScoreOptions)
    tell: Tell = silent

    def draws(self, *address: int) -> np.random.Generator:
        """Chance of its own for each purpose and text."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.options.seed, *address))))

    def read(
        self, lm: LanguageModel, texts: Sequence[str], label: str, prompt: Any = None, moments: bool = False
    ) -> list[TokenRecord]:
        """Texts as a model scores them, behind a prompt."""
        found: list[TokenRecord] = []
        for start in range(0, len(texts), AT_ONCE):
            self.tell(label, start, len(texts))
            found += map(recorded, lm.score(list(texts[start : start + AT_ONCE]), prompt, moments=moments))
        self.tell(label, len(texts), len(texts))
        return found

    @cached_property
    def own(self) -> list[TokenRecord]:
        """The texts."""
        return self.read(self.lm, self.texts, "texts", moments=True)

    @cached_property
    def referred(self) -> list[TokenRecord]:
        """The texts under the reference model."""
        assert self.options.reference is not None
        return self.read(self.options.reference, self.texts, "reference")

    @cached_property
    def lowered(self) -> list[TokenRecord]:
        """The texts in lower case."""
        return self.read(self.lm, [text.lower() for text in self.texts], "lower case")

    def losses(self) -> tuple[Array, Array]:
        """L under the model and under the reference, a token where both split the texts alike, else a byte: [n] each."""
        own, other = self.own, self.referred
        if all(one.ids == two.ids for one, two in zip(own, other, strict=True)):
            return np.array([record.loss for record in own]), np.array([record.loss for record in other])
        one, two = ([-record.logprobs.sum() / record.covered for record in records] for records in (own, other))
        return np.array(one), np.array(two)

    @cached_property
    def after_others(self) -> Array:
        """L of each text behind texts that are no members: [n]."""
        return self._behind(self.options.shots, "behind non-members")

    @cached_property
    def after_members(self) -> Array:
        """L of each text behind members: [n]."""
        return self._behind(self.options.member_shots, "behind members")

    def _behind(self, shots: Sequence[str], label: str) -> Array:
        if set(shots) & set(self.texts):
            raise BadInput("a text that is audited stands among the shots, too; behind itself any text is likely.")
        prefix = "\n\n".join(shots) + "\n\n"
        longest = max(len(self.lm.tokenize(text)) for text in self.texts)
        ids, room = self.lm.tokenize(prefix), self.lm.network.context - longest
        if room < 1:
            raise BadInput("a text leaves no room for a prefix in the model's context; cut the texts shorter.")
        records = self.read(self.lm, self.texts, label, prompt=ids[-room:])
        # Only of the tokens that have a probability without the prefix, too.
        return np.array(
            [
                -float(record.logprobs[-len(own.logprobs) :].mean())
                for record, own in zip(records, self.own, strict=True)
            ]
        )

    @cached_property
    def shuffled(self) -> list[list[TokenRecord]]:
        """Of each text, versions with swapped words."""
        count = self.options.augmentations
        changed = [
            swapped(text, self.draws(1, place, version), self.options.swaps)
            for place, text in enumerate(self.texts)
            for version in range(count)
        ]
        records = self.read(self.lm, changed, "swapped words")
        return [records[place * count : (place + 1) * count] for place in range(len(self.texts))]

    @cached_property
    def near(self) -> Array:
        """The mean −L of the neighbours of each text: [n]."""
        options, found = self.options, []
        masked = MaskedNeighbours(options.masked_model)
        for place, text in enumerate(self.texts):
            self.tell("neighbours", place, len(self.texts))
            near = masked.of(text, options.neighbours, options.candidates, options.dropout, self.draws(2, place))
            if not near:
                raise BadInput(f"the masked model finds no neighbour of the text {text[:40]!r}.")
            losses = [recorded(scored).loss for scored in self.lm.score(near)]
            found.append(-float(np.mean(losses)))
        return np.array(found)

    @cached_property
    def repeated(self) -> Array:
        """How much of each text's second half the model writes behind the first one, as ROUGE-1 recall: [n]."""
        found = []
        for place, text in enumerate(self.texts):
            self.tell("continuations", place, len(self.texts))
            words = text.split()
            prompt, rest = (" ".join(part) for part in (words[: len(words) // 2], words[len(words) // 2 :]))
            length = len(self.lm.tokenize(prompt)) if prompt else 0
            if not length or length >= self.options.continued:
                raise BadInput(
                    f"samia continues the first half of a text up to {self.options.continued} tokens, and that of "
                    f"{text[:40]!r} has {length}; cut the texts, or leave samia out."
                )
            replies = self.lm.generate(
                prompt,
                temperature=1.0,
                top_k=self.options.top_k,
                n=self.options.samples,
                seed=self.options.seed + place,
                max_new_tokens=self.options.continued - length,
            )
            listed = replies if isinstance(replies, list) else [replies]
            found.append(float(np.mean([recalled(reply.text, rest) for reply in listed])))
        return np.array(found)

    @cached_property
    def gradients(self) -> Array:
        """The mean over the model's parameters of the norm of the gradient of L, [n]. Raises Refused without the modules."""
        import copy

        import torch

        model = getattr(self.lm.network, "model", None)
        if not isinstance(model, torch.nn.Module):
            raise Refused(
                f"gradnorm needs the modules of {self.lm.name}, which its path lacks; load it with fast='off'."
            )
        model = copy.deepcopy(model).requires_grad_(True)
        found = []
        for place, text in enumerate(self.texts):
            self.tell("gradients", place, len(self.texts))
            ids = torch.tensor([self.lm.tokenize(text)], device=self.lm.network.device)
            model.zero_grad()
            with torch.enable_grad():
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
            found.append(float(torch.stack(norms).mean()))
        return np.array(found)
