"""AdaBlock against fixed blocks at the same threshold, on answers of several lines, and with delimiters that mean nothing.

    python benchmarks/adablock.py --samples 100

"length" is the mean length of the blocks that were begun; "at line ends" the share of block ends that stand at a line break,
and behind it the same of the blocks that a delimiter ended ("triggered", with how many of all blocks these are). The controls
take as delimiters three tokens drawn from those of the answers.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field

from canvas_study import Row, Study, arguments

from decodery.diffusion.adablock import AdaBlock, DelimitedBlocks
from decodery.engine.events import Unmasked

TASKS = ("arithmetic", "latin_square", "sudoku")
CONTROLS = 4
TOKENS = 3


@dataclass(frozen=True)
class Watched(DelimitedBlocks):
    """Notes which blocks a delimiter has ended."""

    triggered: list[int] = field(default_factory=list)

    def delimiter(self, canvas, start, laws):
        found = super().delimiter(canvas, start, laws)
        if found is not None:
            self.triggered.append(found + 1)
        return found


@dataclass(frozen=True)
class WatchedAdaBlock(AdaBlock):
    """AdaBlock; the ends of triggered blocks by request."""

    def check(self):
        object.__setattr__(self, "triggered", {})

    def blocks(self, request, length):
        plain = super().blocks(request, length)
        watched = Watched(plain.fallback, plain.delimiters, plain.threshold, plain.window, plain.base, plain.drawn)
        self.triggered[request.number] = watched.triggered
        return watched


class Ends:
    """What is counted of the blocks' ends."""

    def __init__(self, newline: int, triggered: dict[int, list[int]] | None = None):
        self.newline, self.triggered = newline, triggered
        self.counts: Counter[str] = Counter()
        self.lengths: list[int] = []

    def __call__(self, sample, reply) -> None:
        tokens = {}
        for event in reply.events:
            if isinstance(event, Unmasked):
                tokens.update(zip(event.offsets, event.tokens, strict=True))
        request = next(event.request for event in reply.events if isinstance(event, Unmasked))
        fired = set(self.triggered[request]) if self.triggered is not None else set()
        ends = reply.stats.block_ends
        self.lengths += [b - a for a, b in itertools.pairwise([0, *ends])]
        for end in ends:
            self.counts["ends"] += 1
            self.counts["at line"] += tokens.get(end - 1) == self.newline
            self.counts["triggered"] += end in fired
            self.counts["triggered at line"] += end in fired and tokens.get(end - 1) == self.newline

    def text(self) -> str:
        c = self.counts
        found = f"  length {statistics.fmean(self.lengths):5.2f}, at line ends {100 * c['at line'] / c['ends']:5.1f} %"
        if c["triggered"]:
            share = 100 * c["triggered at line"] / c["triggered"]
            found += f", of triggered {share:5.1f} % ({100 * c['triggered'] / c['ends']:.0f} % of blocks)"
        return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--blocks", default="4,8,16", help="usual block lengths, with commas between")
    parser.add_argument("--caches", default="none,dual")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--delimiter-threshold", type=float, default=0.3)
    parser.add_argument("--window", type=float, default=0.25)
    options = parser.parse_args()
    study = Study(options, TASKS)
    [newline] = study.lm.encode("\n")
    used = sorted({token for samples in study.samples.values() for s in samples for token in study.lm.encode(s.answer)})
    used.remove(newline)
    gains: dict[str, list[float]] = {"newline": [], "drawn tokens": []}
    study.heading()
    for cache, block in itertools.product(options.caches.split(","), options.blocks.split(",")):
        shared = {"block_length": int(block), "cache": cache}

        def adaptive(label: str, delimiters: str, shared=shared) -> tuple[Row, Ends]:
            method = WatchedAdaBlock(
                **shared,
                threshold=options.threshold,
                delimiter_threshold=options.delimiter_threshold,
                window=options.window,
                delimiters=delimiters,
            )
            ends = Ends(newline, method.triggered)

            def tell(sample, reply):
                ends(sample, reply)
                method.triggered.pop(reply.events[0].request)

            row = study.run(method, label, tell)
            study.line(row, ends.text())
            return row, ends

        ends = Ends(newline)
        written = f"block_length={block}, cache={cache}"
        spec = f"masked-diffusion(rule=threshold, threshold={options.threshold}, {written})"
        fixed = study.run(spec, f"fixed {written}", ends)
        study.line(fixed, ends.text())
        row, _ = adaptive(f"  adablock newline {written}", "newline")
        gains["newline"].append(row.accuracy - fixed.accuracy)
        for seed in range(CONTROLS):
            drawn = random.Random(seed).sample(used, TOKENS)
            row, _ = adaptive(f"  drawn tokens {seed}, {written}", "+".join(map(str, drawn)))
            gains["drawn tokens"].append(row.accuracy - fixed.accuracy)
    for name, values in gains.items():
        print(f"gain over fixed blocks, {name}: {100 * statistics.fmean(values):+.2f} points on average")
    study.by_task(study.rows)
    study.more["gains"] = gains
    study.write()


if __name__ == "__main__":
    main()
