"""How much of several drafts each verifier accepts, beside the most that any verifier could.

The laws are logged from real text: the target writes it, and at every position the processed law of the target and that of
the draft are kept. On each logged pair the optimum of every way of drawing is computed, the acceptance of every verifier
is computed, and the verifier is run on drafts that are really drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from decodery.engine.method import Decoding, Exactness, Method
from decodery.engine.request import Request
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadInput, BadSetting
from decodery.evaluation.acceptance_report import AcceptanceReport, AcceptanceRow
from decodery.evaluation.provenance import provenance
from decodery.evaluation.questions import Question
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import EMPTY, ROOT, Draft, Siblings
from decodery.speculative.draft_laws.growth import draw_distinct, draw_independent
from decodery.speculative.draft_laws.laws import DraftLawMethod
from decodery.speculative.draft_laws.multi_draft import greedy_top, verifier_named
from decodery.speculative.loop import Round
from decodery.speculative.transport import (
    alpha_kseq,
    alpha_rrs_wr,
    alpha_stars,
    rrs_wor_samples,
)
from decodery.speculative.transport.laws import Masses
from decodery.speculative.transport.optimum import likeliest, without_replacement
from decodery.speculative.verifiers import Verdict

Progress = Callable[[str, int, int], None]
DRAFT_COUNTS = (1, 2, 3, 4, 8)
TEMPERATURES = (0.6, 1.0)
BATCH = 8
"""Requests decoded together."""
STEP = 0.4
"""Of the quadrature; its error of 1e-8 is far below the standard errors here."""
RRS_SAMPLES = 8
"""Draws per row by which the acceptance of recursive rejection without replacement is computed."""
SIBLINGS = (Siblings.WITH_REPLACEMENT, Siblings.WITHOUT_REPLACEMENT, Siblings.GREEDY)
VERIFIERS = {
    Siblings.WITH_REPLACEMENT: ("recursive-rejection", "k-seq"),
    Siblings.WITHOUT_REPLACEMENT: ("recursive-rejection",),
    Siblings.GREEDY: ("greedy-set",),
}


@dataclass(frozen=True)
class LawPair:
    """Processed laws [tokens] float64 of target and draft at a position, over the tokens that either allows."""

    p: Masses
    q: Masses


def log_laws(
    lm: LanguageModel,
    drafting: DraftLawMethod,
    prompts: Sequence[Sequence[int]],
    rows: int,
    *,
    temperature: float,
    support: int = 1000,
    max_new_tokens: int = 32,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[LawPair]:
    """At least one and at most `rows` pairs of laws, from text that the target samples after the prompts.

    drafting: its draft laws are logged. support: both laws keep their so many likeliest tokens. The prompts are taken in
    order, again and again with other draws, until there are enough rows. Raises what admission raises.
    """
    pairs: list[LawPair] = []
    logged: dict[int, list[LawPair]] = {}
    method = _logging(drafting, logged, support)
    settings = Settings(temperature=temperature, top_k=support, max_new_tokens=max_new_tokens, seed=seed)
    started = 0
    while len(pairs) < rows:
        scheduler, requests = Scheduler(), []
        for _ in range(BATCH):
            request = Request(lm, prompts[started % len(prompts)], settings, started, sample=started // len(prompts))
            drafting.admit(request)
            scheduler.submit(request, method)
            requests.append(request)
            started += 1
        scheduler.run()
        for request in requests:
            if request.error is not None:
                raise request.error
            pairs += logged.pop(request.number, [])
        if not pairs:
            raise BadInput(f"{drafting.draft} cannot draft anywhere in these texts, so there are no laws to compare.")
        if on_progress is not None:
            on_progress(f"logging laws at temperature {temperature:g}", min(len(pairs), rows), rows)
    return pairs[:rows]


def _logging(drafting: DraftLawMethod, logged: dict[int, list[LawPair]], support: int) -> Method:
    """Plain decoding that keeps the laws it passes, by request."""

    @dataclass(frozen=True)
    class LogLaws(Method):
        """Plain decoding that keeps the laws of target and draft."""

        name: ClassVar[str] = "log-laws"
        title: ClassVar[str] = "Plain decoding that keeps laws"
        paper: ClassVar[str] = "none"
        exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
        family: ClassVar[str] = "evaluation"

        def decode(self, request: Request) -> Decoding:
            sequence, laws = request.new_sequence(), drafting.laws(request)
            while True:
                q = yield from laws.root(request.tokens)
                scores = yield Forward(sequence, request.tokens[sequence.length :], logits=Rows.LAST)
                p = request.law.log_probabilities(scores.logits[0]).exp()
                if q is not None:
                    logged.setdefault(request.number, []).append(_pair(p, q, support))
                before, token = list(request.tokens), request.draw(scores.logits[0])
                over = request.commit([token], scores.logits)
                laws.observe(Round(before, EMPTY, Verdict((), token), [token], scores.logits, {}))
                if over:
                    return

    return LogLaws()


def _pair(p: torch.Tensor, q: torch.Tensor, support: int) -> LawPair:
    target, draft = (_kept(law.double().cpu().numpy(), support) for law in (p, q))
    allowed = (target > 0) | (draft > 0)
    return LawPair(target[allowed], draft[allowed])


def _kept(law: Masses, support: int) -> Masses:
    """The law of its likeliest tokens. Top-k alone keeps all that tie with the last: in a law of counts, most tokens."""
    kept = likeliest(law, support)
    found = np.zeros_like(law)
    found[kept] = law[kept] / law[kept].sum()
    return found


@dataclass
class MeasuredAcceptance:
    """Per count of drafts, one number per logged row [rows]. optimum: by way of drawing. expected, accepted: by way of
    drawing and verifier, computed and observed."""

    optimum: dict[tuple[Siblings, int], NDArray[np.float64]]
    expected: dict[tuple[Siblings, str, int], NDArray[np.float64]]
    accepted: dict[tuple[Siblings, str, int], NDArray[np.float64]]


def analyse(
    pairs: Sequence[LawPair],
    counts: Sequence[int] = DRAFT_COUNTS,
    *,
    trials: int = 1,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> MeasuredAcceptance:
    """Optimum, computed and observed acceptance on logged laws. trials: drafts drawn and verified per row and count."""
    found = MeasuredAcceptance({}, {}, {})
    targets, drafts = [pair.p for pair in pairs], [pair.q for pair in pairs]
    size = max(1, len(pairs) // 20)
    for start in range(0, len(pairs), size):
        if on_progress is not None:
            on_progress("optimal acceptance", start, len(pairs))
        block = without_replacement(targets[start : start + size], drafts[start : start + size], counts, STEP)
        for n, row in block.items():
            _append(found.optimum, (Siblings.WITHOUT_REPLACEMENT, n), row)
    for place, pair in enumerate(pairs):
        if on_progress is not None:
            on_progress("verifying drafts", place, len(pairs))
        for kind in (Siblings.WITH_REPLACEMENT, Siblings.GREEDY):
            for n, value in alpha_stars(pair.p, pair.q, counts, kind).items():
                _append(found.optimum, (kind, n), [value])
        distinct = rrs_wor_samples(pair.p, pair.q, max(counts), RRS_SAMPLES, seed + place).mean(axis=0)
        for n in counts:
            for key, value in (
                ((Siblings.WITH_REPLACEMENT, "recursive-rejection", n), alpha_rrs_wr(pair.p, pair.q, n)),
                ((Siblings.WITH_REPLACEMENT, "k-seq", n), alpha_kseq(pair.p, pair.q, n)),
                ((Siblings.WITHOUT_REPLACEMENT, "recursive-rejection", n), float(distinct[n - 1])),
                ((Siblings.GREEDY, "greedy-set", n), float(found.optimum[Siblings.GREEDY, n][-1])),
            ):
                _append(found.expected, key, [value])
            for kind in SIBLINGS:
                shares = observe(pair, kind, n, trials, seed, place)
                for verifier, share in shares.items():
                    _append(found.accepted, (kind, verifier, n), [share])
    return found


def _append(columns: dict[Any, NDArray[np.float64]], key: Any, values: Sequence[float] | NDArray[np.float64]) -> None:
    columns[key] = np.append(columns.get(key, np.empty(0)), values)


class _SameLaw:
    """Target laws of a draft of one level: what follows the accepted token does not matter."""

    def __init__(self, law: torch.Tensor):
        self._law = law

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._law


def observe(pair: LawPair, kind: Siblings, count: int, trials: int, seed: int, row: int) -> dict[str, float]:
    """Draw `count` drafts, run the verifiers on them, and see how often one is accepted: verifier -> share of `trials`."""
    q, target = torch.from_numpy(pair.q), _SameLaw(torch.from_numpy(pair.p).log())
    accepted = dict.fromkeys(VERIFIERS[kind], 0)
    for trial in range(trials):
        # The position tells rows apart and the request tells trials apart.
        noise = Noise(seed, trial)
        if kind is Siblings.WITH_REPLACEMENT:
            drawn = draw_independent(noise, q, count, row)
        elif kind is Siblings.WITHOUT_REPLACEMENT:
            drawn = draw_distinct(noise, q, count, row)
        else:
            drawn = greedy_top(q, count - 1)
            rest = q.clone()
            rest[drawn] = 0
            drawn += [noise.choose(rest, row, Stage.DRAFT)] if float(rest.sum()) > 0 else []
        draft = Draft(drawn, [ROOT] * len(drawn), {ROOT: q}, kind)
        for verifier in accepted:
            accepted[verifier] += bool(verifier_named(verifier, kind).verify(draft, target, noise, row).path)
    return {verifier: count / trials for verifier, count in accepted.items()}


def acceptance_report(
    lm: LanguageModel,
    drafting: DraftLawMethod,
    questions: Sequence[Question],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    counts: Sequence[int] = DRAFT_COUNTS,
    rows: int = 500,
    support: int = 1000,
    trials: int = 1,
    max_new_tokens: int = 32,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> AcceptanceReport:
    """Log laws at every temperature and analyse them. Raises BadSetting, BadInput, and what admission raises."""
    check_numbers(temperatures, counts, rows, support, trials, max_new_tokens)
    prompts = _prompts(lm, questions, max_new_tokens)
    table: list[AcceptanceRow] = []
    seconds = 0.0
    for temperature in temperatures:
        pairs = log_laws(
            lm,
            drafting,
            prompts,
            rows,
            temperature=temperature,
            support=support,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_progress=on_progress,
        )
        start = time.perf_counter()
        found = analyse(pairs, counts, trials=trials, seed=seed, on_progress=on_progress)
        seconds += time.perf_counter() - start
        for kind in SIBLINGS:
            for n in counts:
                for verifier in VERIFIERS[kind]:
                    table.append(
                        AcceptanceRow.of(
                            temperature,
                            n,
                            kind.value,
                            verifier,
                            accepted=found.accepted[kind, verifier, n],
                            expected=found.expected[kind, verifier, n],
                            optimum=found.optimum[kind, n],
                        )
                    )
    told = {
        **provenance(lm),
        "draft": drafting.draft,
        "layers": drafting.layers,
        "prompts": ", ".join(sorted({question.source or "questions given" for question in questions})),
        "questions": len(prompts),
        "rows": rows,
        "support": support,
        "trials": trials,
        "max_new_tokens": max_new_tokens,
        "temperatures": list(temperatures),
        "seed": seed,
        "analysis_seconds": seconds,
    }
    return AcceptanceReport(table, told)


def check_numbers(
    temperatures: Sequence[float], counts: Sequence[int], rows: int, support: int, trials: int, max_new_tokens: int
) -> None:
    """Raise BadSetting for what cannot be measured."""
    for temperature in temperatures:
        if not 0 < temperature < float("inf"):
            raise BadSetting(
                f"temperatures must be above 0, not {temperature:g}: in greedy decoding nothing is drawn, and a draft is "
                "accepted or not."
            )
    if not temperatures:
        raise BadSetting("give at least one temperature.")
    if not counts or min(counts) < 1 or max(counts) > 64:
        raise BadSetting(f"the numbers of drafts must lie in 1..64, not {', '.join(map(str, counts)) or 'nothing'}.")
    for name, value, least in (
        ("rows", rows, 2),
        ("support", support, 1),
        ("trials", trials, 1),
        ("max_new_tokens", max_new_tokens, 1),
    ):
        if value < least:
            raise BadSetting(f"{name} must be at least {least}, not {value}.")


def _prompts(lm: LanguageModel, questions: Sequence[Question], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the first turn of every question that fits; each category comes once, then each again."""
    place: dict[str, int] = {}
    ranks = []
    for question in questions:
        ranks.append(place.get(question.category, 0))
        place[question.category] = ranks[-1] + 1
    questions = [question for _, question in sorted(zip(ranks, questions, strict=True), key=lambda pair: pair[0])]
    chat = getattr(lm.tokenizer, "chat_template", None)
    ids = [
        lm.tokenize([{"role": "user", "content": question.turns[0]}] if chat else question.turns[0])
        for question in questions
    ]
    fitting = [prompt for prompt in ids if len(prompt) + max_new_tokens <= lm.network.context]
    if not fitting:
        raise BadInput(f"none of the {len(questions)} questions fits into the context of {lm.name}.")
    return fitting
