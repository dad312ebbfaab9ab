"""`decodery race`: one prompt, decoded plainly and by a method, side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator
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

DEFAULT_PROMPTS = {
    "an answer in prose": "Explain how a bicycle stays upright, and then give five tips for a beginner.",
    "a text to correct": """Correct the spelling of this text and change nothing else:

Our libary opens at nine on weekdays and at ten on Saturdays. You can borow up to eight books for four weeks, and return them \
at any branch. If somebody else has reserved a book, you will recieve a message. Childrens books can be renewed twice, all \
others once. The reading room on the second floor is quiet; please leave food and drinks outside.""",
    "a list as JSON": "Turn this list into JSON with the keys name, city and year: Ada Lovelace, London, 1815; Alan Turing, "
    "London, 1912; Grace Hopper, New York, 1906; Emmy Noether, Erlangen, 1882; Kurt Goedel, Brno, 1906.",
}
"""What is raced over where nothing is given: drafts pay little where every word is new, and much where words come again."""
PAYS = 1.05
"""Below it a race is called even: so much differs from run to run."""
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
    turns only. Both are warmed up before, and what the method learned in that is forgotten. Without a prompt there are three
    races, over unlike prompts, in which the method knows nothing of those before.

    Example: `decodery race "Write a limerick about a cat." --method prompt-lookup`
    """
    given = prompt is not None or file is not None
    prompts = {"": read_prompt(prompt, file)} if given else DEFAULT_PROMPTS
    values: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if seed is not None:
        values["seed"] = seed
    values = with_seed(values)
    named = check_early(method, values)
    lm = model.load()
    named = named or lm.default_method
    described = describe(lm)
    console = output()
    races: dict[str, list[Lane]] = {}
    for label, asked in prompts.items():
        chat = bool(getattr(lm.tokenizer, "chat_template", None))
        ids: Any = [{"role": "user", "content": asked}] if chat else asked
        with Bars("warming up"):
            _warm_up(lm, ids, named, values)
        races[label] = [_lane(lm, "plain decoding", PLAIN, ids, values), _lane(lm, named, named, ids, values)]
        _show(console, races[label], asked, quiet=as_json)
    if as_json:
        results = [
            _result(lanes, asked, described, values)
            for asked, lanes in zip(prompts.values(), races.values(), strict=True)
        ]
        print_json(results[0] if given else {"races": results, "speed_up": _speed_up(_together(races.values()))})
        return
    _summary(console, races, described, values)


def _show(console: Console, lanes: list[Lane], asked: str, quiet: bool) -> None:
    """Run a race before the reader's eyes."""
    if quiet:
        _run(lanes)
        return
    console.print(Text(asked, style="bold"), soft_wrap=True)
    if console.is_terminal:
        with Live(_view(console, lanes), console=console, auto_refresh=False) as live:
            _run(lanes, lambda: live.update(_view(console, lanes), refresh=True))
    else:
        _run(lanes)
        for lane in lanes:
            print_line(f"\n--- {lane.title}\n{lane.text}")
    print_line()


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


def _together(races: Collection[list[Lane]]) -> list[Lane]:
    """Several races as one."""
    return [_joined([lanes[place] for lanes in races]) for place in (0, 1)]


def _joined(lanes: list[Lane]) -> Lane:
    """What a lane did in several races."""
    first = lanes[0]
    forwards = sum(lane.stats.get("forwards", 0) for lane in lanes)
    length = sum(len(lane.token_ids) for lane in lanes) / forwards if forwards else 0.0
    return dataclasses.replace(
        first,
        seconds=sum(lane.seconds for lane in lanes),
        token_ids=[token for lane in lanes for token in lane.token_ids],
        stats={"forwards": forwards, "acceptance_length": length},
    )


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


def _summary(
    console: Console, races: dict[str, list[Lane]], described: dict[str, Any], settings: dict[str, Any]
) -> None:
    together = _together(races.values())
    told = {**races, "all of them": together} if len(races) > 1 else races
    rows: list[tuple[str | Text, ...]] = []
    for label, lanes in told.items():
        for lane, speed_up in zip(lanes, (1.0, _speed_up(lanes)), strict=True):
            rows.append(
                (
                    *([Text(label if lane is lanes[0] else "")] if len(told) > 1 else []),
                    Text(lane.title, style="bold"),
                    str(len(lane.token_ids)),
                    f"{lane.seconds:.2f}",
                    f"{lane.tokens_per_second:.1f}",
                    str(lane.stats.get("forwards", "")),
                    f"{lane.stats.get('acceptance_length', 0.0):.2f}",
                    Text(f"{speed_up:.2f}x", style="bold green" if speed_up > 1 else ""),
                )
            )
    head = ("", "tokens>", "seconds>", "tokens/s>", "forwards>", "tokens per forward>", "speed-up>")
    print_table((*[""] * (len(told) > 1), *head), rows)
    print_line()
    for label, lanes in races.items():
        verdict = _verdict(lanes, str(described["dtype"]), settings)
        console.print(Text.assemble(f"{label}: " if label else "", verdict), soft_wrap=True)
    if (gain := _speed_up(together)) < PAYS:
        console.print(
            Text(
                f"{together[1].title} is no faster than plain decoding here ({gain:.2f}x): its drafts do not pay for their "
                "rows with this model, on this machine, for these words. Plain decoding is --method autoregressive.",
                style="yellow",
            ),
            soft_wrap=True,
        )
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
