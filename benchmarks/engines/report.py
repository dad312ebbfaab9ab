"""What a race found: tables with ratios and their spread, targets, and the distance to the limit of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .entrants import CASCADE, INTEGER, PLAIN, Entrant
from .race import Group, Record
from .ratios import Ratio, rate, rates, ratio

INTEGER_PLAIN = "decodery autoregressive, integer"
TARGETS: tuple[tuple[str, str, int, float], ...] = (
    (CASCADE, "transformers generate", 1, 4.0),
    (CASCADE, "vLLM", 1, 3.5),
    (CASCADE, "vLLM n-gram", 1, 3.5),
    (CASCADE, "llama.cpp BF16", 1, 1.8),
    (CASCADE, "OpenVINO bf16", 1, 1.8),
    (INTEGER, "transformers generate", 1, 4.0),
    (INTEGER, "vLLM", 1, 3.5),
    (INTEGER, "vLLM n-gram", 1, 3.5),
    (INTEGER, "llama.cpp, the file itself", 1, 1.8),
    (INTEGER, "llama.cpp Q4_0", 1, 1.8),
    (INTEGER, "OpenVINO 4-bit", 1, 1.8),
)
"""Ours, theirs, batch size, the least ratio wanted. Packed weights give bfloat16's scores bit by bit, so they may also be held
against engines that have bfloat16 alone."""
THROUGHPUT = 1.5
"""The ratio to vLLM wanted of each batch size above one, for any of our entrants."""
OURS = (PLAIN, CASCADE, INTEGER_PLAIN, INTEGER)


@dataclass
class Report:
    """Everything that a race found. bandwidth: of each measurement, bytes per second by kind of access. loaded: of each worker,
    what its `load` answered. failures: why something is missing, by name. told: provenance and settings of the race."""

    entrants: Sequence[Entrant]
    groups: Sequence[Group]
    records: list[Record]
    bandwidth: list[dict[str, float]]
    loaded: Mapping[str, dict[str, Any]]
    failures: dict[str, str]
    told: dict[str, Any] = field(default_factory=dict)

    def ratio(self, ours: str, theirs: str, batch: int) -> Ratio | None:
        """How many times as fast."""
        return ratio(rates(self.records, ours, batch), rates(self.records, theirs, batch))

    @property
    def batches(self) -> list[int]:
        """Batch sizes, in the order of the groups."""
        return list(dict.fromkeys(group.batch for group in self.groups))

    def rows(self, batch: int) -> list[dict[str, Any]]:
        """One row per entrant that was measured at this batch size."""
        found = []
        for entrant in self.entrants:
            own = [record for record in self.records if (record.entrant, record.batch) == (entrant.name, batch)]
            if not own:
                continue
            firsts = [r.first_token_seconds for r in own if r.first_token_seconds is not None]
            rounds = sum(record.told.get("rounds", 0) for record in own)
            found.append(
                {
                    "entrant": entrant.name,
                    "weights": entrant.weights,
                    "tokens_per_second": rate(rates(self.records, entrant.name, batch)),
                    "cascade_over_it": self.ratio(CASCADE, entrant.name, batch),
                    "integer_over_it": self.ratio(INTEGER, entrant.name, batch),
                    "tokens_per_round": sum(r.new_tokens for r in own) / rounds if rounds else None,
                    "first_token_seconds": median(firsts) if firsts else None,
                    "identical": sum(record.identical for record in own) / len(own),
                    "turns": len(own),
                }
            )
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What was wanted and what was reached; pairs of which one is missing are left out."""
        wanted = list(TARGETS)
        wanted += [(ours, "vLLM", batch, THROUGHPUT) for batch in self.batches if batch > 1 for ours in OURS]
        found = []
        for ours, theirs, batch, least in wanted:
            reached = self.ratio(ours, theirs, batch)
            if reached is not None:
                found.append(
                    {
                        "ours": ours,
                        "theirs": theirs,
                        "batch": batch,
                        "wanted": least,
                        "ratio": reached,
                        "reached": reached.value >= least,
                    }
                )
        return found

    def limits(self) -> list[dict[str, Any]]:
        """How near plain decoding comes to what memory allows: a token costs one reading of the weights and of its cache.

        Tokens after the first, alone, so that the prefill does not count; the bandwidth is the median over its measurements of
        the best kind of access.
        """
        if not self.bandwidth:
            return []
        speed = median(max(kinds.values()) for kinds in self.bandwidth)
        found = []
        for name, worker in ((PLAIN, "decodery"), (INTEGER_PLAIN, "decodery-integer")):
            settings = self.loaded.get(worker, {}).get("settings", {})
            own = [r for r in self.records if r.entrant == name and r.batch == 1 and r.first_token_seconds is not None]
            if not own or not settings.get("weight_bytes"):
                continue
            pace, limit = [], []
            for record in own:
                assert record.first_token_seconds is not None
                pace.append((record.new_tokens - 1) / (record.seconds - record.first_token_seconds))
                cached = len(self.groups[record.group].prompts[0]) + record.new_tokens / 2
                limit.append(speed / (settings["weight_bytes"] + cached * settings["cache_bytes_per_token"]))
            found.append(
                {
                    "entrant": name,
                    "bytes_per_second": speed,
                    "weight_bytes": settings["weight_bytes"],
                    "tokens_per_second": median(pace),
                    "limit_tokens_per_second": median(limit),
                    "share_of_limit": median(a / b for a, b in zip(pace, limit, strict=True)),
                }
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {
            str(batch): [
                {key: asdict(value) if isinstance(value, Ratio) else value for key, value in row.items()}
                for row in self.rows(batch)
            ]
            for batch in self.batches
        }
        return {
            "told": self.told,
            "rows": plain,
            "targets": [target | {"ratio": asdict(target["ratio"])} for target in self.targets()],
            "limits": self.limits(),
            "bandwidth": self.bandwidth,
            "loaded": dict(self.loaded),
            "failures": self.failures,
            "groups": [
                {"batch": g.batch, "categories": g.categories, "prompt_tokens": [len(p) for p in g.prompts]}
                for g in self.groups
            ],
            "records": [asdict(record) for record in self.records],
        }

    def tables(self) -> dict[str, dict[str, Any]]:
        """For `results/engines.json`: the tables of the documents, of one request at a time and of each larger batch, and of
        the
        targets. How they were made stands in each."""

        def number(value: float | None) -> list[float | None] | None:
            return None if value is None else [value, None, None]

        def interval(found: Ratio | None) -> list[float | None] | None:
            return None if found is None else [found.value, found.low, found.high]

        head = (
            "entrant",
            "weights",
            "tokens/s",
            "cascade over it",
            "integer cascade over it",
            "tokens/round",
            "identical",
        )
        forms = [("s", ""), (".1f", ""), (".2f", "x"), (".2f", "x"), (".2f", ""), (".0%", "")]
        found: dict[str, dict[str, Any]] = {}
        for batch in self.batches:
            rows = [
                [
                    row["entrant"],
                    row["weights"],
                    number(row["tokens_per_second"]),
                    interval(row["cascade_over_it"]),
                    interval(row["integer_over_it"]),
                    number(row["tokens_per_round"]),
                    number(row["identical"]),
                ]
                for row in self.rows(batch)
            ]
            name = "alone" if batch == 1 else f"together-{batch}"
            found[name] = {"head": list(head), "forms": forms, "rows": rows, "claims": []}
        targets = [
            [
                target["ours"],
                target["theirs"],
                f"{target['wanted']:g}x, {target['batch']} at a time",
                interval(target["ratio"]),
                "yes" if target["reached"] else "no",
            ]
            for target in self.targets()
        ]
        found["targets"] = {
            "head": ["ours", "theirs", "wanted", "reached", "holds"],
            "forms": [("s", ""), ("s", ""), (".2f", "x"), ("s", "")],
            "rows": targets,
            "claims": [],
        }
        told = self.told
        about = (
            f"{told['prompts']}; {told['new_tokens']} new tokens, greedy, {told['rule']}; {told['rounds']} "
            "rounds, all engines in "
            "turns. Ratios: geometric means over prompts of medians over rounds."
        )
        for table in found.values():
            table |= {"about": about, "items": len(self.groups), "made": {**told["made"], "command": told["command"]}}
        return found

    def markdown(self) -> str:
        """For people."""
        text: list[str] = []
        for batch in self.batches:
            text += [f"### {batch} together" if batch > 1 else "### One at a time", "", *self._table(batch), ""]
        targets = self.targets()
        if targets:
            text += ["### Targets", "", "| ours | theirs | together | wanted | reached | rounds | |"]
            text += ["|---|---|---|---|---|---|---|"]
            text += [
                f"| {t['ours']} | {t['theirs']} | {t['batch']} | {t['wanted']:g}x | {t['ratio']} | "
                f"{t['ratio'].least:.2f} to {t['ratio'].most:.2f} | {'yes' if t['reached'] else '**no**'} |"
                for t in targets
            ]
            text.append("")
        for limit in self.limits():
            text.append(
                f"- {limit['entrant']}: {limit['tokens_per_second']:.1f} tokens per second after the first, "
                f"{limit['share_of_limit']:.0%} of the limit of {limit['limit_tokens_per_second']:.1f} that "
                f"{limit['bytes_per_second'] / 1e9:.1f} GB/s and {limit['weight_bytes'] / 1e6:.0f} MB of weights (and the "
                "cache) set."
            )
        text += [f"- left out: {name}: {reason}" for name, reason in self.failures.items()]
        text += ["", *self._settings()]
        return "\n".join(text) + "\n"

    def _table(self, batch: int) -> list[str]:
        header = (
            *("entrant", "weights", "tokens/s", "cascade over it", "rounds"),
            *("integer cascade over it", "rounds", "tokens/round", "first token", "identical"),
        )
        lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for row in self.rows(batch):
            cells = [row["entrant"], row["weights"], f"{row['tokens_per_second']:.1f}"]
            for key in ("cascade_over_it", "integer_over_it"):
                found: Ratio | None = row[key]
                cells += ["", ""] if found is None else [str(found), f"{found.least:.2f} to {found.most:.2f}"]
            length, first = row["tokens_per_round"], row["first_token_seconds"]
            cells.append("" if length is None else f"{length:.2f}")
            cells.append("" if first is None else f"{first:.2f} s")
            cells.append(f"{row['identical']:.0%}")
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    def _settings(self) -> list[str]:
        told = self.told
        lines = [
            f"{told['model']} on {told['hardware']}, {told['threads']} threads; {told['prompts']}; "
            f"{told['new_tokens']} new tokens, greedy, {told['rule']}; {told['rounds']} rounds; {told['date'][:10]}. "
            "Ratios: geometric mean over prompts of medians over rounds [95 % bootstrap interval over prompts], beside it the "
            "least and the most of single rounds. *identical*: share of plain decoding's answer before the first other token.",
            "",
        ]
        for name, reply in self.loaded.items():
            versions = ", ".join(f"{package} {version}" for package, version in reply["versions"].items())
            settings = ", ".join(f"{key}={value}" for key, value in reply["settings"].items())
            lines.append(f"- `{name}`: {versions}; {settings}")
        return lines
