"""SpecTr: the joint law of sequences by sampling, and block efficiency against the number of drafts.

python benchmarks/spectr.py law          # chi-square of three tokens, 200 000 samples for 1, 2 and 4 drafts
python benchmarks/spectr.py drafts       # 1, 2, 4, 8 drafts of fixed length on a real model
python benchmarks/spectr.py budget       # against recursive speculative decoding at equal target budget
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import numpy as np
from block_efficiency import arguments, compare

from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.transport import rho_star
from decodery.speculative.verifiers import spectr as spectr_verifier
from decodery.testing import TabularScorer, goodness_of_fit

POSITION = 2
LENGTH = 2
"""Drafted tokens; with the bonus, three are emitted."""


def law(samples: int) -> list[dict[str, object]]:
    """The joint law of the first three tokens of a random model over five, for 1, 2 and 4 drafts."""
    scorer = TabularScorer(5, order=None, seed=4)
    drafter = scorer.blurred(0.7)
    target_law, draft_law = cache(scorer.law), cache(drafter.law)
    factors: dict[tuple[bytes, bytes, int], float] = {}

    def factor(p, q, count):
        key = (p.numpy().tobytes(), q.numpy().tobytes(), count)
        if key not in factors:
            factors[key] = rho_star(np.frombuffer(key[0]), np.frombuffer(key[1]), count)
        return factors[key]

    spectr_verifier.rho_star = factor  # the same few laws come again and again
    verifier, rows = spectr_verifier.KSeq(), []
    for count in (1, 2, 4):
        counts: Counter[tuple[int, ...]] = Counter()
        for sample in range(samples):
            noise = Noise(1, sample)
            draft, paths = drawn(draft_law, count, noise)
            logs = [target_law(path).log() for path in paths]
            verdict = verifier.verify(draft, logs, noise, POSITION)
            output = (*(draft.tokens[node] for node in verdict.path), verdict.next_token)
            while len(output) <= LENGTH:
                place = POSITION + len(output)
                output = (*output, noise.choose(target_law(output), place, Stage.TARGET, 1))
            counts[output] += 1
        fit = goodness_of_fit(counts, scorer.joint([], LENGTH + 1))
        rows.append({"drafts": count, "samples": samples, "statistic": fit.statistic, "degrees": fit.degrees,
                     "p_value": fit.p_value, "total_variation": fit.total_variation})  # fmt: skip
        print(
            f"{count} drafts, {samples} samples: chi-square {fit.statistic:.1f} on {fit.degrees} degrees of freedom, "
            f"p = {fit.p_value:.3f}, total variation {fit.total_variation:.4f}",
            flush=True,
        )
    return rows


def drawn(law, count: int, noise: Noise) -> tuple[Draft, list[tuple[int, ...]]]:
    """`count` sequences; equal prefixes share their nodes. Also the tokens on the way to the root and to each node."""
    tokens: list[int] = []
    parents: list[int] = []
    paths: list[tuple[int, ...]] = [()]
    draws: dict[int, list[int]] = {}
    q = {ROOT: law(())}
    ends = [ROOT] * count
    for depth in range(LENGTH):
        places: dict[tuple[int, int], int] = {}
        for number, end in enumerate(ends):
            token = noise.choose(q[end], POSITION + depth, Stage.DRAFT, number)
            if (end, token) not in places:
                places[end, token] = len(tokens)
                tokens.append(token)
                parents.append(end)
                paths.append((*paths[end + 1], token))
                q[len(tokens) - 1] = law(paths[-1])
            ends[number] = places[end, token]
            draws.setdefault(end, []).append(ends[number])
    return Draft(tokens, parents, q, Siblings.WITH_REPLACEMENT, draws=draws), paths


def main() -> None:
    parser = arguments("SpecTr: joint law, and tokens per forward of the target.")
    parser.add_argument("study", choices=("law", "drafts", "budget"))
    parser.add_argument("--draft", default="ngram", help="who drafts: ngram, ngram-text, layers, or a model")
    parser.add_argument("--length", type=int, default=3, help="tokens per draft")
    parser.add_argument("--samples", type=int, default=200_000)
    given = parser.parse_args()
    if given.study == "law":
        rows = law(given.samples)
        if given.json is not None:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    elif given.study == "drafts":
        compare(
            given,
            (f"spectr(drafts={count}, length={given.length}, draft={given.draft})" for count in (1, 2, 4, 8)),
        )
    else:
        recursive = f"recursive-speculative-decoding(draft={given.draft}, "
        # About eight nodes each; SpecTr's equal prefixes are scored once, so it may use fewer.
        compare(
            given,
            (
                f"draft-model(length=8, draft={given.draft})",
                f"spectr(drafts=2, length=4, draft={given.draft})",
                f"spectr(drafts=4, length=2, draft={given.draft})",
                f"spectr(drafts=8, length=1, draft={given.draft})",
                f"{recursive}tree=branching, branching=2x1x1x1)",
                f"{recursive}tree=branching, branching=4x1)",
                f"{recursive}width=4, length=2)",
                f"{recursive}width=2, length=4)",
            ),
        )


if __name__ == "__main__":
    main()
