"""The ways in which a model's passes are run: time by rows and context, parts, agreement, memory and start.

`times`: one pass after some cached tokens, and a prefill (context 0). `profile`: parts of such a pass in compiled code.
`bandwidth`: of memory. `perplexity`: of a text by each path, and by weights that are rounded at load, and how far the scores
are from float32's. `agreement`: plain
greedy answers against those of the path "off", tokens of it scored by each path in one go. `start`: a process from nothing to
the first token, and its peak memory. `compiled`: transformers' modules as a graph of torch.compile with frozen weights and a
cache of fixed size, which takes minutes to make.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.language_model import LanguageModel
from decodery.models import store
from decodery.models.forward import Forward, Rows
from decodery.models.native import binding, build
from decodery.models.reading import transformers_model
from experiments.texts import Asked, loaded, prompt_of, questions_of

PARTS = ("norms", "queries, keys, values", "attention", "output", "gate and up", "down", "head")
"""Of a pass, as the native decoder counts them."""
TEXT = "The quick brown fox jumps over the lazy dog, and the dog looks up. " * 200
"""What the passes that are timed read."""


@dataclass(frozen=True)
class Settings(Asked):
    paths: tuple[str, ...] = ("integer", "packed", "native", "fused", "off")
    rows: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    contexts: tuple[int, ...] = (64, 256, 1024)
    prefill: int = 256
    repeats: int = 15
    text: str = ""
    """A file whose windows are scored; empty: decodery's own questions."""
    window: int = 256
    windows: int = 40
    quantize: tuple[str, ...] = ()
    """What the weights of a checkpoint that is not quantised are rounded to, for arms of `perplexity` beside the paths."""


def _pass(
    lm: LanguageModel, ids: Sequence[int], context: int, rows: int, begin: Callable[[], None] = lambda: None
) -> float:
    """Milliseconds of a pass over `rows` tokens after `context` cached ones; context 0 is a prefill. `begin` is called right
    before that pass."""
    network = lm.network
    with network.working():
        sequence = network.new_sequence()
        if context:
            network.run([Forward(sequence, ids[:context], logits=Rows.LAST)])
            # The pass before the one that counts warms the caches as decoding does.
            network.run([Forward(sequence, ids[:rows])])
            sequence.truncate(context)
        begin()
        started = time.perf_counter()
        network.run([Forward(sequence, ids[:rows], logits=Rows.ALL if context else Rows.LAST)])
        return 1e3 * (time.perf_counter() - started)


def times(settings: Settings) -> Study:
    sizes = [*((c, r) for c in settings.contexts for r in settings.rows), (0, settings.prefill)]

    def arm(path: str) -> Arm:
        lm = loaded(settings.model, path)
        ids = lm.encode(TEXT)
        return Arm(path, lambda _: {f"{c} {r}": _pass(lm, ids[: c + r], c, r) for c, r in sizes})

    def named(context: int, rows: int) -> str:
        return f"{rows} after {context}" if context else f"prompt of {rows}"

    figures = [Figure(f"{named(c, r)}, ms", f"{c} {r}", middle=True, form=".1f") for c, r in sizes]
    last = settings.paths[-1]
    ratios = [
        Figure(f"{named(c, r)}, of {last}", f"{c} {r}", middle=True, against=last)
        for c, r in ((settings.contexts[0], 1), (0, settings.prefill))
    ]
    claims = [
        PublishedClaim(f"faster than {last}", ratios[0].name, path, 1.0, above=False) for path in settings.paths[:-1]
    ]
    about = "Milliseconds of a pass, medians; an item is a repeat, and the paths take turns."
    arms = [arm(path) for path in settings.paths]
    return Study(
        about, list(range(settings.repeats)), arms, [*ratios, *figures], claims, "path", loaded(settings.model, last)
    )


def profile(settings: Settings) -> Study:
    library = binding.load(build.compiled(build.usable()[0], "-DDECODERY_PROFILE"))
    library.decodery_ready()

    def arm(path: str, context: int, rows: int) -> Arm:
        lm = loaded(settings.model, path)
        network: Any = lm.network
        ids = lm.encode(TEXT)

        def measure(_: int) -> Mapping[str, float]:
            plain, network.library = network.library, library
            spent = (ctypes.c_int64 * len(PARTS))()
            whole = _pass(lm, ids, context, rows, begin=lambda: library.decodery_spent(spent))
            library.decodery_spent(spent)
            network.library = plain
            return {**{name: part / 1e6 for name, part in zip(PARTS, spent, strict=True)}, "whole call": whole}

        return Arm(f"{path}, {rows} after {context}" if context else f"{path}, prompt of {rows}", measure)

    compiled_paths = [path for path in settings.paths if hasattr(loaded(settings.model, path).network, "library")]
    sizes = [*((c, r) for c in settings.contexts for r in (1, 8, 16, 32)), *((0, c) for c in settings.contexts)]
    arms = [arm(path, context, rows) for path in compiled_paths for context, rows in sizes]
    figures = [Figure(name, name, middle=True, form=".3g") for name in (*PARTS, "whole call")]
    about = (
        "Milliseconds of the first thread, all layers together, medians; the whole call is around the compiled code."
    )
    return Study(about, list(range(settings.repeats)), arms, figures, arms_are="pass", lm=loaded(settings.model))


def bandwidth(settings: Settings) -> Study:
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "engines" / "workers"))  # scripts of their own
    from bandwidth_worker import Bandwidth

    meter = Bandwidth()
    meter.load({"threads": torch.get_num_threads()})
    measured = once_per_item(lambda _: meter.measure())
    ways = list(meter.measure())

    def arm(way: str) -> Arm:
        return Arm(way, lambda number: {"rate": measured(number)[way] / 1e9})

    figures = (Figure("GB/s", "rate", middle=True, form=".1f"),)
    return Study(
        "Memory, with torch's threads.", list(range(3)), [arm(way) for way in ways], figures, arms_are="access"
    )


def perplexity(settings: Settings) -> Study:
    exact = loaded(settings.model, "off", "float32")
    read = (
        Path(settings.text).read_text("utf-8")
        if settings.text
        else "\n".join(q.turns[0] for q in questions_of(settings, 100))
    )
    ids = exact.encode(read)
    windows = [ids[i : i + settings.window] for i in range(0, len(ids) - settings.window, settings.window)]
    items = windows[:: max(1, len(windows) // settings.windows)][: settings.windows]

    def scored(lm: LanguageModel, window: Sequence[int]) -> torch.Tensor:
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), window[:-1])])
        return scores.logits.log_softmax(-1)

    def scored_exactly(window: Any) -> torch.Tensor:
        return scored(exact, window)

    exact_of = once_per_item(scored_exactly)

    def arm(path: str, lm: LanguageModel) -> Arm:
        def measure(window: Sequence[int]) -> Mapping[str, float]:
            theirs = exact_of(window)
            ours = theirs if lm is exact else scored(lm, window)
            following = torch.tensor(window[1:])[:, None]
            return {
                "tokens": float(len(following)),
                "bits": -float(ours.gather(1, following).sum()) / 0.6931471805599453,
                "divergence": float((theirs.exp() * (theirs - ours)).sum()) / 0.6931471805599453,
                "likeliest": float((ours.argmax(1) == theirs.argmax(1)).sum()),
            }

        return Arm(path, measure)

    figures = (
        Figure("bits per token", "bits", per="tokens", form=".4f"),
        Figure("divergence from float32, bits per token", "divergence", per="tokens", form=".5f"),
        Figure("likeliest token as in float32", "likeliest", per="tokens", form=".2%"),
    )
    about = f"Windows of {settings.window} tokens of {Path(settings.text).name or 'the questions'}, each scored in one pass."
    arms = [
        *(arm(path, loaded(settings.model, path)) for path in settings.paths),
        *(arm(f"integer, {word}", loaded(settings.model, "integer", quantize=word)) for word in settings.quantize),
        arm("off, float32", exact),
    ]
    return Study(about, items, arms, figures, arms_are="path", lm=loaded(settings.model, settings.paths[0]))


def agreement(settings: Settings) -> Study:
    modules = loaded(settings.model, "off")

    def answered(lm: LanguageModel, question: Any) -> Any:
        return lm.generate(
            prompt_of(lm, question), method="autoregressive", max_new_tokens=settings.tokens, temperature=0.0
        )

    theirs_of = once_per_item(lambda question: answered(modules, question))

    def arm(path: str) -> Arm:
        lm = loaded(settings.model, path)

        def measure(question: Any) -> Mapping[str, float]:
            theirs = theirs_of(question)
            own = theirs if lm is modules else answered(lm, question)
            pairs = list(zip(own.token_ids, theirs.token_ids, strict=False))
            ids = [*theirs.prompt_token_ids, *theirs.token_ids]
            logits = lm.network.run([Forward(lm.network.new_sequence(), ids[:-1])])[0].logits.log_softmax(-1)
            start = len(theirs.prompt_token_ids) - 1
            return {
                "identical": float(list(own.token_ids) == list(theirs.token_ids)),
                "same": float(next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))),
                "tokens": float(len(theirs.token_ids)),
                "bits": -float(sum(logits[row, ids[row + 1]] for row in range(start, len(ids) - 1)))
                / 0.6931471805599453,
            }

        return Arm(path, measure)

    figures = (
        Figure("identical answers", "identical", form=".0%", share=True),
        Figure("before the first other token", "same", per="tokens", form=".0%"),
        Figure("bits per token of the answers of off", "bits", per="tokens", form=".3f"),
    )
    about = f"Plain greedy answers of at most {settings.tokens} tokens, beside those of transformers' modules (off)."
    return Study(
        about, questions_of(settings), [arm(path) for path in settings.paths], figures, arms_are="path", lm=modules
    )


START = """
import sys, time
started = float(sys.argv[1])
import decodery, resource
lm = decodery.load(sys.argv[2], fast=sys.argv[3])
loaded = time.time()
for _ in lm.stream("The sea is", max_new_tokens=2):
    break
first = time.time()
print(loaded - started, first - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def start(settings: Settings) -> Study:
    """A fresh process each time; what an earlier load found out is there."""

    def arm(path: str) -> Arm:
        def measure(_: int) -> Mapping[str, float]:
            command = [sys.executable, "-c", START, str(time.time()), settings.model, path]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            return dict(zip(("loaded", "first", "peak"), map(float, out.split()[-3:]), strict=True))

        return Arm(path, measure)

    last = settings.paths[-1]
    figures = (
        Figure("loaded, s", "loaded", middle=True),
        Figure("first token, s", "first", middle=True),
        Figure(f"first token, of {last}", "first", middle=True, against=last),
        Figure("peak, MiB", "peak", middle=True, form=".0f"),
    )
    about = "A Python process from nothing to the first token, medians."
    return Study(
        about, list(range(min(settings.repeats, 3))), [arm(path) for path in settings.paths], figures, arms_are="path"
    )


def compiled(settings: Settings) -> Study:
    """What torch itself makes of the model."""
    from torch._inductor import config as inductor
    from transformers import StaticCache

    model: Any = transformers_model(store.resolve(settings.model), torch.bfloat16)
    context = 256

    def ways(rows: int) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor], float]:
        cache: Any = StaticCache(config=model.config, max_cache_len=2 * context)
        ids, positions = torch.randint(0, 1000, (1, rows)), torch.arange(context, context + rows)[None]

        def one_pass() -> torch.Tensor:
            for layer in cache.layers:  # every pass writes to the same place
                layer.cumulative_length.fill_(context)
            logits: torch.Tensor = model(ids, position_ids=positions, past_key_values=cache).logits
            return logits

        with torch.no_grad(), inductor.patch(freezing=True):
            model(torch.zeros(1, context, dtype=torch.long), past_key_values=cache)
            graph = torch.compile(one_pass, dynamic=False)
            started = time.perf_counter()
            graph(), graph()
            return one_pass, graph, time.perf_counter() - started

    def arm(name: str, work: Callable[[], torch.Tensor], seconds: float) -> Arm:
        def measure(_: int) -> Mapping[str, float]:
            with torch.no_grad(), inductor.patch(freezing=True):
                started = time.perf_counter()
                work()
                return {"ms": 1e3 * (time.perf_counter() - started), "compiling": seconds}

        return Arm(name, measure)

    arms = []
    for rows in (1, 16):
        plain, graph, seconds = ways(rows)
        arms += [arm(f"{rows} rows, as they are", plain, 0.0), arm(f"{rows} rows, compiled", graph, seconds)]
    figures = (Figure("ms", "ms", middle=True, form=".1f"), Figure("compiling, s", "compiling", form=".0f"))
    about = f"Passes of transformers' modules after {context} tokens, medians."
    return Study(about, list(range(settings.repeats)), arms, figures, arms_are="modules")


EXPERIMENT = Experiment(
    "paths",
    "Where the time of a pass goes, by path",
    "decodery's own paths, beside transformers' modules",
    ("decodery.models.native", "decodery.models.blocks", "decodery.models.network"),
    Settings(),
    {
        "times": times,
        "profile": profile,
        "bandwidth": bandwidth,
        "perplexity": perplexity,
        "agreement": agreement,
        "start": start,
        "compiled": compiled,
    },
)
