"""The recipe of rainbow padding (Kim et al., arXiv 2510.03680), and its diagnostics: arms that differ in their padding alone.

    decodery train rainbow-padding --padding eos --folder work-eos --artifact arm-eos
    decodery train rainbow-padding --padding rainbow --folder work-rainbow --artifact arm-rainbow

A canvas that is filled up with end tokens teaches a model that late positions are end tokens whatever the answer is; decoding
by confidence fills those first, and each makes its left neighbour an end token too. With K pads in a fixed cycle that starts
anew behind the end token, no pad is likelier than 1/K before anything is known, so content comes first. Decoders stay as they
are; they read the pads from the model's description (`decodery.diffusion.padding`).

Both arms start from `diffusion-lists` and see the same word problems of six steps. Most answers show their steps and end in a
remark that breaks off anywhere, so that nothing tells the length in advance; some leave the steps out, which is short and hard
to get right. A decoder that fills late positions with end tokens first thereby chooses a short answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decodery.diffusion.padding import truncate
from decodery.evaluation.parallelbench import arithmetic
from decodery.evaluation.parallelbench.words import END, MASK, PADS, decode, encode, vocabulary, write_tokenizer
from decodery.models.catalogue import ARTIFACTS
from decodery.models.masked_diffusion import RAINBOW_ENTRY
from decodery.training.masked_diffusion import Recipe, Row, Source, Trainer, collate, fill, machine, training_bar
from decodery.training.networks import SmallLlama
from decodery.training.options import add_options, changed_options, read_options, recipe_parser, refusing

K = 7
"""Pads of the published recipe."""
POOL = 2048
STEPS = 6
"""Events of each problem."""
TERSE = 0.25
"""Share of answers without steps."""
REMARK = ("\n", "the", "cat", "is", "happy")
BREAKS = (1, 3, 5, 7, 3, 2)
"""What may stand behind an answer with steps, and how often, in parts of all, it breaks off after none of its words, one, and
so on: behind every answer each colour of the rainbow has a share of at most a quarter."""
CARD_PROBLEMS = 40
"""Fresh problems that a card's figures are of."""
CANVASES = {48: 0.25, 64: 0.25, 96: 0.2, 128: 0.3}
"""Lengths of canvases in training, and how often each is taken."""


def target(answer: Sequence[int], length: int, end: int, pads: Sequence[int] = ()) -> list[int]:
    """The canvas [length] of an answer: the answer, one end token, and pads in turn from the first one on.

    pads: K distinct ids that mean nothing else; none at all is the usual filling with end tokens. Raises ValueError where
    the answer and its end do not fit, and where a pad is not distinct or stands in the answer.
    """
    if len(answer) + 1 > length:
        raise ValueError(f"an answer of {len(answer)} tokens and its end do not fit into a canvas of {length}")
    if len({*pads, end}) != len(pads) + 1 or {*pads, end} & set(answer):
        raise ValueError("end token and pads must differ from each other and from the answer's tokens")
    left = length - len(answer) - 1
    filling = [pads[place % len(pads)] for place in range(left)] if pads else [end] * left
    return [*answer, end, *filling]


def complete(canvas: Sequence[int], end: int, pads: Sequence[int]) -> list[int]:
    """The canvas with everything behind its first end token replaced by the cycle: what an early stop may write unseen.

    Raises ValueError where there is no end token.
    """
    place = list(canvas).index(end)
    return target(canvas[:place], len(canvas), end, pads)


def draw_answer(problem: arithmetic.WordProblem, room: int, generator: random.Random) -> str:
    """An answer of at most `room` tokens: the steps, the last line, and the remark's first words; or the last line alone."""
    *steps, last = problem.solution().split("\n")
    fits = room - 6 * len(steps) - 2
    if fits < 0 or generator.random() < TERSE:
        return last
    often = BREAKS[: fits + 1]
    remark = REMARK[: generator.choices(range(len(often)), often)[0]]
    return "\n".join((*steps, " ".join((last, *remark)))).replace(" \n ", "\n")


def is_right(problem: arithmetic.WordProblem, text: str) -> bool:
    """Whether the first line that begins with "answer" gives the result."""
    answers = (line for line in text.split("\n") if line.split()[:1] == ["answer"])
    return arithmetic.is_right(problem, next(answers, ""))


def rows(seed: int, pads: Sequence[str]) -> Source:
    """A source of rows. pads: none for end tokens; "random" in place of the words draws pads without an order."""
    words = vocabulary()
    colours = [words[pad] for pad in pads]

    def pool(number: int) -> list[Row]:
        generator = random.Random(f"{seed} {number}")
        found: list[Row] = []
        for _ in range(POOL):
            problem = arithmetic.draw_word_problem(STEPS, generator)
            canvas = generator.choices(list(CANVASES), list(CANVASES.values()))[0]
            answer = encode(draw_answer(problem, canvas - 1, generator), words)
            prompt = encode(f"{problem.question()} =", words)
            found.append((len(prompt), [*prompt, *target(answer, canvas, words[END], colours)]))
        return found

    return pool


def without_order(source: Source, pads: Sequence[int], seed: int) -> Source:
    """The same rows with every pad replaced by a random one: the control that has nothing to learn from."""

    def pool(number: int) -> list[Row]:
        generator = random.Random(f"{seed} order {number}")
        known = set(pads)
        return [
            (prompt, [generator.choice(pads) if token in known else token for token in tokens])
            for prompt, tokens in source(number)
        ]

    return pool


# Diagnostics


def questions(count: int, seed: int) -> list[arithmetic.WordProblem]:
    """Fresh problems."""
    generator = random.Random(f"questions {seed}")
    return [arithmetic.draw_word_problem(STEPS, generator) for _ in range(count)]


def _prompts(problems: Sequence[arithmetic.WordProblem]) -> list[list[int]]:
    words = vocabulary()
    return [encode(f"{problem.question()} =", words) for problem in problems]


@dataclass(frozen=True)
class Behaviour:
    """How an arm answers on one canvas.

    accuracy: share of right last lines. length: mean words of an answer. early_padding: share of the tokens written in the
    first half of the steps that were end tokens or pads. no_end, stray: share of canvases without an end token, and with pads
    inside the answer.
    """

    canvas: int
    blocks: int
    accuracy: float
    length: float
    early_padding: float
    no_end: float
    stray: float


def behaviour(
    network: Any, pads: Sequence[int], problems: Sequence[arithmetic.WordProblem], canvas: int, blocks: int = 1
) -> Behaviour:
    """Answer problems greedily, one token a step, the surest first, in so many blocks."""
    words = vocabulary()
    names, end = list(words), words[END]
    unused = [words[pad] for pad in PADS if words[pad] not in pads]
    order: list[Tensor] = []
    filled = fill(
        network, _prompts(problems), canvas, words[MASK], block=-(-canvas // blocks), banned=unused, order=order
    )
    written = torch.tensor(filled)
    padding = torch.isin(written, torch.tensor([end, *pads]))
    early = torch.stack(order[: canvas // 2]).any(dim=0)
    readings = [truncate(row, {end}, pads) for row in filled]
    right = [
        is_right(problem, decode(reading.tokens, names)) for problem, reading in zip(problems, readings, strict=True)
    ]
    count = len(problems)
    return Behaviour(
        canvas,
        blocks,
        sum(right) / count,
        sum(len(reading.tokens) for reading in readings) / count,
        float((padding & early).sum() / early.sum()),
        sum(reading.end is None for reading in readings) / count,
        sum(reading.stray > 0 for reading in readings) / count,
    )


@torch.no_grad()
def first_step(
    network: Any, pads: Sequence[int], problems: Sequence[arithmetic.WordProblem], canvas: int
) -> dict[str, list[float]]:
    """What a network believes of an empty canvas, by position, mean over problems: "confidence" (the highest probability),
    "end" (of the end token) and "pad" (of the likeliest pad)."""
    words = vocabulary()
    laws = _laws(network, problems, canvas, {})
    found = {"confidence": laws.amax(-1), "end": laws[..., words[END]]}
    if pads:
        found["pad"] = laws[..., list(pads)].amax(-1)
    return {name: values.mean(dim=0).tolist() for name, values in found.items()}


@torch.no_grad()
def cascade(network: Any, problems: Sequence[arithmetic.WordProblem], canvas: int, reach: int = 16) -> dict[int, float]:
    """p(end token at i | end token at i + k) for k = 1 to `reach`, all else masked, mean over the later half of positions i."""
    end = vocabulary()[END]
    found = {}
    for distance in range(1, reach + 1):
        places = range(canvas // 2, canvas - distance)
        values = [
            float(_laws(network, problems, canvas, {place + distance: end})[:, place, end].mean())
            for place in places[:: max(1, len(places) // 4)]
        ]
        found[distance] = sum(values) / len(values)
    return found


@torch.no_grad()
def pad_loss(network: Any, source: Source, pads: Sequence[int], seed: int = 0, shown: int = 1) -> float:
    """Mean cross-entropy, in nats, of hidden pads when `shown` random pads are visible and the answer is not."""
    mask = vocabulary()[MASK]
    generator = torch.Generator().manual_seed(seed)
    chosen = [row for row in source(10_000) if sum(token in set(pads) for token in row[1]) >= 8][:64]
    batch = collate(chosen)
    padding = torch.isin(batch.tokens, torch.tensor(list(pads))) & batch.canvas
    order = torch.rand(padding.shape, generator=generator).masked_fill(~padding, 2.0).argsort(dim=1).argsort(dim=1)
    hidden = batch.canvas & ~(padding & (order < shown))
    logits = network.head(network(batch.tokens.masked_fill(hidden, mask), batch.visible))
    asked = hidden & padding
    return float(torch.nn.functional.cross_entropy(logits[asked], batch.tokens[asked]))


def _laws(network: Any, problems: Sequence[arithmetic.WordProblem], canvas: int, shown: dict[int, int]) -> Tensor:
    """Laws [problems, canvas, vocabulary] of an empty canvas but for the tokens shown, the mask left out."""
    mask = vocabulary()[MASK]
    prompts = _prompts(problems)
    empty = [shown.get(place, mask) for place in range(canvas)]
    batch = collate([(len(prompt), [*prompt, *empty]) for prompt in prompts])
    places = batch.prompts[:, None] + torch.arange(canvas)
    states = network(batch.tokens, batch.visible)
    logits: Tensor = network.head(states.gather(1, places[..., None].expand(-1, -1, states.shape[-1])))
    logits[..., mask] = -torch.inf
    return logits.softmax(dim=-1)


# The recipe


def make(
    recipe: Recipe, padding: str, count: int, start: Path, folder: Path, artifact: Path, progress: Any, command: str
) -> dict[str, Any]:
    """Train one arm and write it. padding: "eos", "rainbow", or "random" (the control). count: pads. Returns its card."""
    words = vocabulary()
    names = PADS[:count] if padding != "eos" else ()
    pads = [words[name] for name in names]
    source = rows(recipe.seed, names)
    if padding == "random":
        source = without_order(source, pads, recipe.seed)
    network = SmallLlama.read(start)
    about = {"padding": padding, "pads": count}
    trainer = Trainer(network, source, recipe, words[MASK], folder, progress=progress, about=about)
    log = trainer.train()
    trainer.finished()
    unused = [words[pad] for pad in PADS if pad not in names]
    described = {
        "mask_token_id": words[MASK],
        "shift": False,
        "end_token_ids": [words[END]],
        "pad_token_ids": unused,
        "canvas": 64,
    }
    more: dict[str, Any] = (
        {RAINBOW_ENTRY: {"pad_token_ids": pads, "end_token_id": words[END], "k": count}} if pads else {}
    )
    network.write(
        artifact,
        torch.float8_e4m3fn,  # 2 MB; figures of the card are those of what is written
        masked_diffusion=described,
        eos_token_id=words[END],
        pad_token_id=words[END],
        **more,
    )
    write_tokenizer(artifact)
    card = {
        "title": f"Word problems with {padding} padding",
        "command": command,
        "source": "decodery.training.rainbow_padding; after arXiv 2510.03680",
        "data": "made by the recipe while training; nothing else",
        "licence": "Apache-2.0, as the project's code; the data are generated by it",
        "seed": recipe.seed,
        "recipe": asdict(recipe),
        **about,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "metrics": [
            asdict(behaviour(SmallLlama.read(artifact), pads, questions(CARD_PROBLEMS, 1), canvas))
            for canvas in (48, 96)
        ],
        "log": log,
        "machine": machine(),
    }
    (artifact / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


RECIPE = Recipe(steps=4000, batch_tokens=4096, rate=7e-4, warmup=30, masks="suffix")
"""Defaults of an arm: gentler than training from scratch."""


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = recipe_parser(
        "rainbow-padding", __doc__, folder="where the checkpoint and the log are kept", artifact="where the model goes"
    )
    parser.add_argument("--padding", choices=("eos", "rainbow", "random"), required=True, help="random is a control")
    parser.add_argument("--pads", type=int, default=K, help=f"colours of the rainbow, 1 to {len(PADS)}")
    parser.add_argument("--start", type=Path, default=ARTIFACTS / "diffusion-lists", help="the model to start from")
    add_options(parser, RECIPE)
    given = vars(parser.parse_args(arguments))
    if not 1 <= given["pads"] <= len(PADS):
        parser.error(f"--pads must be 1 to {len(PADS)}")
    recipe = read_options(RECIPE, given)
    command = f"decodery train rainbow-padding --padding {given['padding']} --pads {given['pads']}"
    if given["start"] != ARTIFACTS / "diffusion-lists":
        command += f" --start {given['start'].name}"
    command = " ".join((command, *changed_options(RECIPE, recipe)))
    with training_bar(f"{given['padding']} padding") as progress:
        card = make(
            recipe,
            given["padding"],
            given["pads"],
            given["start"],
            given["folder"],
            given["artifact"],
            progress,
            command,
        )
    from rich.console import Console

    Console().print_json(data=card["metrics"])


if __name__ == "__main__":
    main()
