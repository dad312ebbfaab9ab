"""Rainbow padding against end tokens: answer length and accuracy against the canvas, and why.

python -m decodery.training.rainbow_padding --padding eos --folder work-eos --artifact arm-eos
python -m decodery.training.rainbow_padding --padding rainbow --folder work-rainbow --artifact arm-rainbow
python benchmarks/rainbow_padding.py --eos arm-eos --rainbow arm-rainbow --json result.json

Each arm can be measured alone. With --random a third one, trained on pads without an order, is measured too. All decoding is
greedy, one token a step, the surest first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from decodery.evaluation.parallelbench.words import PADS, vocabulary
from decodery.models.masked_diffusion import RAINBOW_ENTRY
from decodery.training.networks import SmallLlama
from decodery.training.rainbow_padding import behaviour, cascade, first_step, pad_loss, questions, rows, without_order

LONG = 96
"""The canvas on which beliefs are measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eos", type=Path, help="folder of the arm with end tokens")
    parser.add_argument("--rainbow", type=Path, help="folder of the arm with rainbow padding")
    parser.add_argument("--random", type=Path, help="folder of the control with pads in random order")
    parser.add_argument("--canvases", type=int, nargs="+", default=[48, 64, 96, 128])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not (given.eos or given.rainbow or given.random):
        parser.error("name at least one arm: --eos, --rainbow or --random")
    asked = questions(given.samples, given.seed)
    result: dict[str, object] = {"samples": given.samples, "seed": given.seed}
    for name in ("eos", "rainbow", "random"):
        folder = getattr(given, name)
        if folder is None:
            continue
        network = SmallLlama.read(folder)
        pads = json.loads((folder / "config.json").read_text()).get(RAINBOW_ENTRY, {}).get("pad_token_ids", [])
        found: dict[str, object] = {"pads": len(pads)}
        print(
            f"\n{name} padding, {len(pads)} pads\ncanvas  blocks  accuracy  answer length  padding in first half  no end"
        )
        table = []
        for canvas in given.canvases:
            for blocks in given.blocks:
                row = behaviour(network, pads, asked, canvas, blocks)
                table.append(asdict(row))
                print(
                    f"{canvas:6d}  {blocks:6d}  {row.accuracy:8.1%}  {row.length:13.1f}  {row.early_padding:21.3f}  "
                    f"{row.no_end:6.2f}",
                    flush=True,
                )
        found["behaviour"] = table
        profile = first_step(network, pads, asked, LONG)  # its second half lies behind every answer
        late = {key: sum(values[LONG // 2 :]) / (LONG // 2) for key, values in profile.items()}
        print(
            f"first step, canvas {LONG}, mean of positions {LONG // 2} to {LONG - 1}: "
            + ", ".join(f"{k} {v:.3f}" for k, v in late.items())
        )
        chain = cascade(network, asked[:16], LONG)
        print(
            "p(end at i | end at i + k), k = 1, 2, 4, 8, 16: " + ", ".join(f"{chain[k]:.3f}" for k in (1, 2, 4, 8, 16))
        )
        found |= {"first_step": profile, "first_step_late": late, "cascade": chain}
        if pads:
            names = [pad for pad in PADS if vocabulary()[pad] in pads]
            source = rows(given.seed, names)
            if name == "random":
                source = without_order(source, pads, given.seed)
            found["pad_loss"] = {shown: pad_loss(network, source, pads, shown=shown) for shown in (1, 2, 4)}
            print(f"cross-entropy of hidden pads by visible ones: {found['pad_loss']}")
        result[name] = found
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
