"""Private frequency estimation: what moduli cost and save, what an attacker finds, and drafts from what simulated users report.

"errors" computes exact errors and lengths of reports of random sets of moduli beside subset selection over all values. "attack"
guesses values from single reports. "drafts" lets simulated users report pairs of the model's own answers to made prompts, and
replays drafts from the estimated table on its answers to other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.speculative.private_frequency_estimation.cells import Cells, head_pairs
from decodery.speculative.private_frequency_estimation.mechanism import Mechanism
from decodery.speculative.private_frequency_estimation.method import FrequencyDrafter, PrivateFrequencyEstimation
from decodery.speculative.private_frequency_estimation.residues import choose_moduli
from decodery.speculative.private_frequency_estimation.simulation import guessed, simulated_counts
from decodery.speculative.private_frequency_estimation.subset_selection import SubsetSelection
from decodery.speculative.private_frequency_estimation.table import FrequencyTable
from decodery.training.prompts import varied_prompts
from experiments.texts import ACCEPTED, TOKENS_PER_ROUND, Asked, loaded, recorded, replaying

SHAPES = (
    (0.40, 0.50, 10),
    (0.50, 0.60, 5),
    (0.50, 0.60, 10),
    (0.65, 0.75, 10),
    (0.80, 0.90, 5),
    (0.80, 0.90, 10),
)
"""Least and largest modulus as shares of the number of values, and how many."""
BATCH = 32


@dataclass(frozen=True)
class Settings(Asked):
    values: int = 1024
    epsilon: float = 1.0
    sets: int = 6
    attacked: int = 20_000
    runs: int = 10
    texts: int = 160
    users: int = 1_000_000
    table_epsilon: float = 4.0
    contexts: int = 128
    successors: int = 31


def errors(settings: Settings) -> Study:
    size, plain = settings.values, SubsetSelection(settings.values, settings.epsilon)

    def shape(low: float, high: float, count: int) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            system = choose_moduli(size, settings.epsilon, count, (low, high), tries=2, seed=seed)
            mechanism = Mechanism(size, settings.epsilon, system.moduli, seed)
            gains = [block.gain / count for block in mechanism.blocks]
            bits = np.mean([mechanism.bits(block) for block in range(count)])
            return {
                "error": system.error(gains) * plain.gain,
                "bits": float(bits) / plain.bits,
                "condition": system.condition(gains),
            }

        return Arm(f"{count} of {low:g} to {high:g}", measure)

    return Study(
        f"{size} values, epsilon {settings.epsilon:g}; exact errors of the better of two random sets of primes, by their "
        "number and size as shares of the number of values. Error and length: of subset selection over all values. Condition: "
        "largest over least eigenvalue of AᵀWA.",
        range(settings.seed, settings.seed + settings.sets),
        [shape(*one) for one in SHAPES],
        (
            Figure("error", "error"),
            Figure("report", "bits", form=".0%"),
            Figure("condition", "condition", middle=True, form=".0f"),
        ),
        (
            PublishedClaim(
                "the error is at most 1.3 times that of subset selection", "error", "10 of 0.65 to 0.75", 1.3, False
            ),
            PublishedClaim("reports are up to 50 % shorter", "report", "10 of 0.4 to 0.5", 0.5, False),
        ),
        "moduli",
    )


def attack(settings: Settings) -> Study:
    size, epsilon = settings.values, settings.epsilon
    moduli = Mechanism.choose(size, epsilon, tries=4, seed=settings.seed)
    plain = Mechanism(size, epsilon, (size,), settings.seed)
    law = np.arange(1, size + 1) ** -1.1
    law /= law.sum()

    def arm(name: str, mechanism: Mechanism, drawn: Callable[[np.random.Generator], Any]) -> Arm:
        def measure(run: int) -> Mapping[str, float]:
            found = {}
            for label, by_residue in (("found", False), ("by residue", True)):
                chance = np.random.default_rng((settings.seed, run))
                found[label] = float(guessed(mechanism, drawn(chance), chance, by_residue).mean())
            return found

        return Arm(name, measure)

    def uniform(chance: np.random.Generator) -> Any:
        return chance.integers(0, size, settings.attacked)

    def permuted(chance: np.random.Generator) -> Any:
        return chance.choice(size, settings.attacked, p=law)

    def natural(chance: np.random.Generator) -> Any:
        return np.argsort(moduli.system.permutation)[permuted(chance)]

    return Study(
        f"{size} values, epsilon {epsilon:g}, {settings.attacked} users a run; the attacker guesses evenly among the values "
        "that a report leaves, or first among the residues of the set, then among the values behind one of them."
        " Zipf: exponent 1.1; in natural order the residues are those of the values themselves, else of their "
        "random permutation, as everywhere else.",
        range(settings.runs),
        [
            arm("subset selection, all values alike", plain, uniform),
            arm("residues, all values alike", moduli, uniform),
            arm("subset selection, Zipf", plain, permuted),
            arm("residues, Zipf in natural order", moduli, natural),
            arm("residues, Zipf permuted", moduli, permuted),
        ],
        (Figure("found", "found", form=".3%"), Figure("by residue", "by residue", form=".3%")),
        (
            PublishedClaim(
                "attackers find less than behind subset selection", "by residue", "residues, Zipf in natural order",
                "subset selection, Zipf", False,
            ),
        ),
        "reports",
    )  # fmt: skip


def drafts(settings: Settings) -> Study:
    lm = loaded(settings.model)
    chats = bool(getattr(lm.tokenizer, "chat_template", None))
    prompts = varied_prompts(settings.texts, settings.seed)
    asked = [lm.tokenize([{"role": "user", "content": one}] if chats else one) for one in prompts]
    texts: list[list[int]] = []
    for start in range(0, len(asked), BATCH):
        replies = lm.generate(asked[start : start + BATCH], method="autoregressive", max_new_tokens=settings.tokens)
        texts += [reply.token_ids for reply in replies]
    chance = np.random.default_rng(settings.seed)
    tokens = Cells(lm.network.vocabulary)
    half = settings.users // 2

    def reporting(cells: Cells, mechanism: Mechanism) -> Any:
        held = np.concatenate([cells.values(text) for text in texts])
        return simulated_counts(mechanism, chance.choice(held, half), chance).frequencies()

    first = Mechanism.choose(tokens.size, settings.table_epsilon, tries=2, seed=settings.seed)
    head = reporting(tokens, first)
    pairs = head_pairs(tokens, head.values, settings.contexts, settings.successors)
    second = Mechanism.choose(pairs.size, settings.table_epsilon, tries=4, seed=settings.seed)
    private = FrequencyTable.of(pairs, reporting(pairs, second))
    counted = FrequencyTable.counted(pairs, texts)
    method = PrivateFrequencyEstimation(table="estimated", max_ngram=0, width=1, depth=1)

    def arm(name: str, table: FrequencyTable) -> Arm:
        return replaying(name, lambda: FrequencyDrafter(table, method))

    return Study(
        f"{half} simulated users report a token, and {half} others a pair of the {settings.contexts} tokens that came "
        f"first and {settings.successors} that follow them ({pairs.size} cells), at epsilon {settings.table_epsilon:g}; their "
        f"texts are {len(texts)} answers of the model to made prompts. Drafts of one token, replayed on its greedy answers of "
        f"{settings.tokens} tokens to other questions.",
        recorded(Asked(settings.model, settings.questions, settings.per_category, settings.tokens, settings.seed)),
        [
            arm("counted openly", counted),
            arm("reported privately", private),
            arm("reported privately, shuffled contexts", private.shuffled(settings.seed)),
        ],
        (
            ACCEPTED,
            Figure("of the open table", "accepted", per="drafted", against="counted openly"),
            TOKENS_PER_ROUND,
        ),
        (
            PublishedClaim(
                "contexts tell something", "accepted", "reported privately", "reported privately, shuffled contexts"
            ),
            PublishedClaim("within 20 % of the open table", "of the open table", "reported privately", 0.8),
        ),
        "table",
        lm,
    )  # fmt: skip


EXPERIMENT = Experiment(
    "private_frequency_estimation",
    "Private frequency estimation: errors, attacks and drafts",
    "Arcolezi, Private Frequency Estimation Via Residue Number Systems, AAAI 2026, arXiv 2511.11569",
    ("decodery.speculative.private_frequency_estimation",),
    Settings(),
    {"errors": errors, "attack": attack, "drafts": drafts},
)
