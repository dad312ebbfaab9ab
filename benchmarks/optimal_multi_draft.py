"""Multi-draft verification against its optimum: synthetic laws, and draft trees on a real model.

    python benchmarks/optimal_multi_draft.py synthetic   # optimum and verifiers on rows of 1000 tokens
    python benchmarks/optimal_multi_draft.py trees       # three ways of drawing the same tree, on a real model

On logged laws of a real model: decodery acceptance --rows 500
"""

from __future__ import annotations

import json

import numpy as np
from block_efficiency import arguments, compare

from decodery.speculative.draft import Siblings
from decodery.speculative.transport import alpha_kseq, alpha_rrs_wr, alpha_star, rrs_wor_samples

COLUMNS = ("n=1", "OT wr", "OT wor", "K-SEQ", "RRS wr", "RRS wor", "greedy")


def synthetic(pairs: int, size: int = 1000, drafts: int = 4) -> list[dict[str, object]]:
    """Draft logits N(0, 3^2), target logits those plus N(0, s^2), both divided by the temperature."""
    print("T, s      " + " ".join(f"{column:>15s}" for column in COLUMNS))
    rows: list[dict[str, object]] = []
    for temperature, spread in ((1.0, 1), (1.0, 2), (0.6, 1), (0.6, 2)):
        found = []
        for seed in range(pairs):
            generator = np.random.Generator(np.random.Philox(key=seed))
            logits = generator.normal(0, 3, size)
            p, q = (np.exp(row / temperature) for row in (logits + generator.normal(0, spread, size), logits))
            found.append(
                (
                    alpha_star(p, q, 1, Siblings.WITH_REPLACEMENT),
                    alpha_star(p, q, drafts, Siblings.WITH_REPLACEMENT),
                    alpha_star(p, q, drafts, Siblings.WITHOUT_REPLACEMENT),
                    alpha_kseq(p, q, drafts),
                    alpha_rrs_wr(p, q, drafts),
                    rrs_wor_samples(p, q, drafts, 64, seed)[:, -1].mean(),
                    alpha_star(p, q, drafts, Siblings.GREEDY),
                )
            )
        table = np.array(found)
        means, errors = table.mean(axis=0), table.std(axis=0, ddof=1) / pairs**0.5
        cells = " ".join(f"{mean:7.3f} ± {error:.3f}" for mean, error in zip(means, errors, strict=True))
        print(f"{temperature:.1f}, {spread}    {cells}", flush=True)
        numbers = {c: [float(m), float(e)] for c, m, e in zip(COLUMNS, means, errors, strict=True)}
        rows.append({"temperature": temperature, "spread": spread, "drafts": drafts, **numbers})
    return rows


def main() -> None:
    parser = arguments("Multi-draft verification against its optimum.")
    parser.add_argument("study", choices=("synthetic", "trees"))
    parser.add_argument("--draft", default="ngram", help="who drafts: ngram, ngram-text, layers, or a model")
    parser.add_argument("--widths", default="3x1x1")
    parser.add_argument("--pairs", type=int, default=48, help="synthetic pairs of laws")
    given = parser.parse_args()
    if given.study == "synthetic":
        rows = synthetic(given.pairs)
        if given.json is not None:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
        return
    modes = ("greedy", "without-replacement", "with-replacement")
    compare(
        given,
        (f"optimal-multi-draft(widths={given.widths}, mode={mode}, draft={given.draft})" for mode in modes),
    )


if __name__ == "__main__":
    main()
