"""The rows of a benchmark, from totals, and the ways to write them down."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from decodery.evaluation.entrants import Answer

OVERALL = "overall"
AVERAGE = "average of categories"


@dataclass
class Tally:
    """Totals of one entrant over some questions."""

    requests: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    identical: int = 0
    rounds: int | None = 0
    forwards: int | None = 0
    rows: int | None = 0
    drafted: int | None = 0
    accepted: int | None = 0
    first_token_seconds: float | None = 0.0

    def add(self, answers: Sequence[Answer], seconds: float, expected: Sequence[Sequence[int]]) -> None:
        """Count one ask. expected: plain decoding's tokens for each answer."""
        self.seconds += seconds
        for answer, plain in zip(answers, expected, strict=True):
            self.requests += 1
            self.new_tokens += len(answer.token_ids)
            self.identical += tuple(answer.token_ids) == tuple(plain)
            for name in ("rounds", "forwards", "rows", "drafted", "accepted", "first_token_seconds"):
                total, value = getattr(self, name), getattr(answer, name)
                setattr(self, name, None if total is None or value is None else total + value)

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Row:
    """One line of a benchmark. What an engine does not tell, or what has no meaning in an average, is None.

    seconds: wall clock of all requests, prefill included. speedup: tokens per second over plain decoding's in the same
    run, from totals. acceptance_length: new tokens per round. acceptance_rate: accepted per drafted token.
    first_token_seconds: mean. identical: share of outputs that equal plain decoding's token by token.
    tokens_per_second_deviation: sample standard deviation over the repeats, where there are several.
    """

    method: str
    category: str
    requests: int | None
    new_tokens: int | None
    seconds: float | None
    tokens_per_second: float
    speedup: float
    acceptance_length: float | None
    acceptance_rate: float | None
    forwards: int | None
    rows: int | None
    drafted: int | None
    accepted: int | None
    first_token_seconds: float | None
    identical: float | None
    tokens_per_second_deviation: float | None = None

    @classmethod
    def of(cls, method: str, category: str, tally: Tally, plain: Tally, repeats: Sequence[Tally] = ()) -> Row:
        """plain: plain decoding's totals over the same questions. repeats: this entrant's totals of each repeat."""
        rates = [repeat.tokens_per_second for repeat in repeats]
        deviation = None
        if len(rates) > 1:
            mean = sum(rates) / len(rates)
            deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1))
        first = tally.first_token_seconds
        return cls(
            method=method,
            category=category,
            requests=tally.requests,
            new_tokens=tally.new_tokens,
            seconds=tally.seconds,
            tokens_per_second=tally.tokens_per_second,
            speedup=_ratio(tally.tokens_per_second, plain.tokens_per_second) or 0.0,
            acceptance_length=_ratio(tally.new_tokens, tally.rounds),
            acceptance_rate=_ratio(tally.accepted, tally.drafted),
            forwards=tally.forwards,
            rows=tally.rows,
            drafted=tally.drafted,
            accepted=tally.accepted,
            first_token_seconds=None if first is None else first / tally.requests,
            identical=tally.identical / tally.requests,
            tokens_per_second_deviation=deviation,
        )

    @classmethod
    def average(cls, method: str, rows: Sequence[Row], plain: Sequence[Row]) -> Row:
        """The mean over categories, each counting alike; the speed-up is the ratio of the two means."""

        def mean(name: str) -> float | None:
            values = [getattr(row, name) for row in rows]
            return None if None in values else sum(values) / len(values)

        rate = mean("tokens_per_second") or 0.0
        reference = sum(row.tokens_per_second for row in plain) / len(plain)
        return cls(
            method=method,
            category=AVERAGE,
            requests=None,
            new_tokens=None,
            seconds=None,
            tokens_per_second=rate,
            speedup=_ratio(rate, reference) or 0.0,
            acceptance_length=mean("acceptance_length"),
            acceptance_rate=mean("acceptance_rate"),
            forwards=None,
            rows=None,
            drafted=None,
            accepted=None,
            first_token_seconds=mean("first_token_seconds"),
            identical=mean("identical"),
        )


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


@dataclass(frozen=True)
class BenchmarkReport:
    """The rows of a benchmark and where they come from.

    rows: per entrant and category, then over all questions, then the average of the categories. provenance: model,
    machine, versions, settings. notes: what a reader must know, such as entrants that were left out.
    """

    rows: list[Row]
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def row(self, method: str, category: str = OVERALL) -> Row:
        """The row of an entrant. Raises KeyError where there is none."""
        for row in self.rows:
            if (row.method, row.category) == (method, category):
                return row
        raise KeyError((method, category))

    @property
    def engine_overhead(self) -> float:
        """What plain decoding takes beyond its bare forwards, as a share of them."""
        return (
            self.row("bare forward").tokens_per_second
            / self.row(self.provenance.get("plain", "autoregressive")).tokens_per_second
            - 1
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "provenance": self.provenance,
            "notes": self.notes,
            "engine_overhead": self.engine_overhead,
            "rows": [asdict(row) for row in self.rows],
        }

    def write_json(self, path: Path) -> None:
        """Write everything to a file."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def write_csv(self, path: Path) -> None:
        """Write the rows to a file, with a header; the provenance is only in JSON."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def table(self) -> list[tuple[str, ...]]:
        """For people: a header, then one line per entrant over all questions, with the speed-up of each category."""
        categories = list(dict.fromkeys(row.category for row in self.rows if row.category not in (OVERALL, AVERAGE)))
        single = len(categories) == 1
        header = ("method", "tokens/s", "speed-up", "tokens/round", "accepted", "first token", "identical")
        lines = [header if single else (*header, *categories)]
        for row in self.rows:
            if row.category != OVERALL:
                continue
            line = (
                row.method,
                f"{row.tokens_per_second:.1f}",
                f"{row.speedup:.2f}x",
                _number(row.acceptance_length, ".2f"),
                _number(row.acceptance_rate, ".0%"),
                _number(row.first_token_seconds, ".2f", " s"),
                _number(row.identical, ".0%"),
            )
            speeds = tuple(f"{self.row(row.method, category).speedup:.2f}x" for category in categories)
            lines.append(line if single else (*line, *speeds))
        return lines

    def markdown(self) -> str:
        """The table and its provenance, for a page."""
        header, *lines = self.table()
        told = self.provenance
        text = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        text += ["| " + " | ".join(line) + " |" for line in lines]
        text += [
            "",
            f"{told['model']} in {told['dtype']} on {told['hardware']}, {told['threads']} threads; "
            f"{told['questions']} questions ({told['prompts']}), at most {told['max_new_tokens']} new tokens, "
            f"temperature {told['temperature']:g}, batch size {told['batch_size']}, {told['repeats']} repeats; "
            f"{told['date'][:10]}. {self._overhead()}",
        ]
        return "\n".join([*text, *(f"\n{note}" for note in self.notes)]) + "\n"

    def _overhead(self) -> str:
        if self.engine_overhead < 0:  # possible only where the machine was busier during the bare forwards
            return "What the engine costs beside the forwards is lost in the noise of this machine."
        return f"Plain decoding takes {self.engine_overhead:.1%} longer than its bare forwards."


def markdown_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same names as a Markdown table; numbers with three digits."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
