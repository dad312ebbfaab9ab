"""`decodery race`: one prompt, decoded plainly and by a method, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from decodery.cli.console import Bars, output, print_json, print_line, print_table, visible
from decodery.cli.live_text import DRAFTED, legend
from decodery.cli.machine import describe, in_words
from decodery.cli.options import JsonOption, MethodOption, ModelOptions, check_early, with_option_groups, with_seed
from decodery.cli.prompts import read_prompt

if TYPE_CHECKING:
    from decodery.engine.events import Event
    from decodery.language_model import LanguageModel

DEFAULT_PROMPT = "Explain how a bicycle stays upright, and then give five tips for a beginner."
PLAIN = "autoregressive"
TURN_SECONDS = 0.1
"""How long one decodes before it is the other's turn. Long beside a forward, short beside the eye."""
WARM_UP_TOKENS = 8
WARM_UP = "race: warm-up"
RACE = "race"
TEXT_LINES = 14


@dataclass
class Lane:
    """One of the two: its events, and a clock that runs only while it decodes."""

    title: str
    method: str
    exactness: str
    events: Iterator[Event]
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    stats: dict[str, Any] = field(default_factory=dict)

    def take_turn(self, seconds: float) -> None:
        """Decode for about so long, at least to the next event."""
        from decodery.engine.events import Finished, Token

        end = self.seconds + seconds
        while not self.finish_reason and self.seconds < end:
            start = time.perf_counter()
            event = next(self.events, None)
            self.seconds += time.perf_counter() - start
            if isinstance(event, Token):
                if not self.token_ids:
                    self.first_token_seconds = self.seconds
                self.token_ids.append(event.token_id)
                self.pieces.append((event.text, event.from_draft))
            elif isinstance(event, Finished):
                self.pieces.append((event.text, False))
                self.finish_reason, self.stats = event.reason, event.statistics.as_dict()
            elif event is None:
                self.finish_reason = "stop"
        if self.finish_reason:
            next(self.events, None)  # the last event may be followed by the error that ended the request

    @property
    def text(self) -> str:
        """The output so far."""
        return "".join(piece for piece, _ in self.pieces)

    @property
    def tokens_per_second(self) -> float:
        """Of the whole request, reading the prompt included."""
        return len(self.token_ids) / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON. The times are those of the lane's own clock."""
        own = {
            "first_token_seconds": self.first_token_seconds,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }
        return {
            "method": self.method,
            "exactness": self.exactness,
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stats": {**self.stats, **own},
        }


@with_option_groups
def race(
    model: ModelOptions,
    prompt: Annotated[
        str | None, Argument(metavar="PROMPT", help="What a user says to the model; - is standard input.")
    ] = None,
    file: Annotated[Path | None, Option("--file", "-f", help="Read the prompt from a text file.")] = None,
    method: MethodOption = None,
    max_new_tokens: Annotated[int, Option("--max-new-tokens", help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, Option("--temperature", "-t", help="0 is greedy decoding.")] = 0.0,
    seed: Annotated[int | None, Option("--seed", help="Fixes every random draw.", show_default="a fresh one")] = None,
    as_json: JsonOption = False,
) -> None:
    """Decode one prompt plainly and by a method, side by side, and compare.

    The two never decode at the same time: they take turns of a tenth of a second, and each one's clock runs in its own
    turns only. Both are warmed up before, and what the method learned in that is forgotten.

    Example: `decodery race "Write a limerick about a cat." --method prompt-lookup`
    """
    asked = DEFAULT_PROMPT if prompt is None and file is None else read_prompt(prompt, file)
    values: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if seed is not None:
        values["seed"] = seed
    values = with_seed(values)
    named = check_early(method, values)
    lm = model.load()
    named = named or lm.default_method
    given: Any = [{"role": "user", "content": asked}] if getattr(lm.tokenizer, "chat_template", None) else asked
    with Bars("warming up"):
        _warm_up(lm, given, named, values)
    lanes = [_lane(lm, "plain decoding", PLAIN, given, values), _lane(lm, named, named, given, values)]
    described = describe(lm)
    console = output()
    if as_json:
        _run(lanes)
        print_json(_result(lanes, asked, described, values))
        return
    console.print(Text(asked, style="bold"), soft_wrap=True)
    if console.is_terminal:
        with Live(_view(console, lanes), console=console, auto_refresh=False) as live:
            _run(lanes, lambda: live.update(_view(console, lanes), refresh=True))
    else:
        _run(lanes)
        for lane in lanes:
            print_line(f"\n--- {lane.title}\n{lane.text}")
    _summary(console, lanes, described, values)


def _warm_up(lm: LanguageModel, prompt: Any, method: str, settings: dict[str, Any]) -> None:
    """First passes are slow, and some methods measure the machine first. Nothing learned here may help in the race."""
    short = {**settings, "max_new_tokens": min(WARM_UP_TOKENS, settings["max_new_tokens"]), "session": WARM_UP}
    for name in (PLAIN, method):
        lm.generate(prompt, name, **short)
    lm.forget(WARM_UP)
    lm.forget(RACE)


def _lane(lm: LanguageModel, title: str, method: str, prompt: Any, settings: dict[str, Any]) -> Lane:
    from decodery.engine import registry

    chosen = registry.method(method)
    events = lm.stream(prompt, method, **settings, session=RACE)
    return Lane(title, chosen.spec(), str(chosen.exactness), events)


def _run(lanes: list[Lane], show: Any = lambda: None) -> None:
    while not all(lane.finish_reason for lane in lanes):
        for lane in lanes:
            lane.take_turn(TURN_SECONDS)
            show()


def _view(console: Console, lanes: list[Lane]) -> Group:
    width = console.width // 2 - 4
    texts = [_lines(console, lane, width) for lane in lanes]
    height = max(3, min(TEXT_LINES, console.height - 10, max(len(lines) for lines in texts)))
    grid = Table.grid(expand=True)
    for _ in lanes:
        grid.add_column(ratio=1)
    grid.add_row(*(_panel(lane, lines[-height:], height) for lane, lines in zip(lanes, texts, strict=True)))
    return Group(grid) if console.no_color else Group(grid, legend())


def _lines(console: Console, lane: Lane, width: int) -> list[Text]:
    text = Text()
    for piece, from_draft in lane.pieces:
        text.append(visible(piece), style=DRAFTED if from_draft else "")
    return list(text.wrap(console, width))


def _panel(lane: Lane, lines: list[Text], height: int) -> Panel:
    numbers = f"{len(lane.token_ids)} tokens · {lane.seconds:.1f} s · {lane.tokens_per_second:.1f} tokens/s"
    return Panel(
        Text("\n").join(lines),
        title=Text(lane.title, style="bold"),
        subtitle=Text(numbers, style="bold green" if lane.finish_reason else "dim"),
        border_style="green" if lane.finish_reason else "dim",
        height=height + 2,
    )


def _speed_up(lanes: list[Lane]) -> float:
    plain, other = lanes
    return other.tokens_per_second / plain.tokens_per_second if plain.tokens_per_second else 0.0


def _first_difference(lanes: list[Lane]) -> int | None:
    """The place of the first token in which the outputs differ; None where they are identical."""
    plain, other = (lane.token_ids for lane in lanes)
    if plain == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), min(len(plain), len(other)))


def _result(lanes: list[Lane], prompt: str, described: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    difference = _first_difference(lanes)
    return {
        "prompt": prompt,
        **described,
        **settings,
        "runs": [lane.as_dict() for lane in lanes],
        "speed_up": _speed_up(lanes),
        "identical": difference is None,
        "first_difference": difference,
    }


def _summary(console: Console, lanes: list[Lane], described: dict[str, Any], settings: dict[str, Any]) -> None:
    print_line()
    rows = []
    for lane, speed_up in zip(lanes, (1.0, _speed_up(lanes)), strict=True):
        rows.append(
            (
                Text(lane.title, style="bold"),
                str(len(lane.token_ids)),
                f"{lane.seconds:.2f}",
                f"{lane.tokens_per_second:.1f}",
                str(lane.stats.get("forwards", "")),
                f"{lane.stats.get('acceptance_length', 0.0):.2f}",
                Text(f"{speed_up:.2f}x", style="bold green" if speed_up > 1 else ""),
            )
        )
    print_table(("", "tokens>", "seconds>", "tokens/s>", "forwards>", "tokens per forward>", "speed-up>"), rows)
    print_line()
    console.print(_verdict(lanes, str(described["dtype"]), settings), soft_wrap=True)
    console.print(Text(in_words(described), style="dim"), soft_wrap=True)


def _verdict(lanes: list[Lane], dtype: str, settings: dict[str, Any]) -> Text:
    """Whether the outputs are identical, and where they are not, whether they should be."""
    from decodery.engine.method import Exactness

    difference = _first_difference(lanes)
    if difference is None:
        return Text(f"The outputs are identical, all {len(lanes[0].token_ids)} tokens.", style="green")
    differ = f"The outputs differ from token {difference + 1} on"
    exactness = Exactness(lanes[1].exactness)
    if not exactness.lossless:
        return Text(f"{differ}; {lanes[1].method} is {exactness}.", style="yellow")
    if settings["temperature"] > 0 and not exactness.same_tokens:
        if exactness.same_law:
            return Text(f"{differ}: they are two samples of the same law.", style="yellow")
        return Text(f"{differ}; {lanes[1].method} promises identity for greedy decoding only.", style="yellow")
    if dtype != "float32":
        return Text(
            f"{differ}: {dtype} rounds differently with other numbers of rows in a forward. "
            "Identity is promised in float32; see it with --dtype float32.",
            style="yellow",
        )
    return Text(
        f"{differ}, although {lanes[1].method} promises {exactness} in float32; please report this.", style="red"
    )
