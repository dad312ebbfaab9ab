"""Many prompts of a file: decoded in batches, told line by line, and gone on with where an earlier job ended."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from decodery.cli.console import Counter, notice, output, print_json, writing
from decodery.cli.options import needs
from decodery.cli.outcome import Outcome
from decodery.cli.prompts import Line, as_conversation
from decodery.errors import BadInput, BadPrompt, NotEnoughMemory

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.replies import Reply

INTERRUPTED = 130
Entry = Mapping[str, Any]
"""What is told of one text of a line, or its error."""


class Results(AbstractContextManager["Results"]):
    """A file of results, one JSON object per text; a job that ended early goes on behind what is there.

    samples: texts of each line. done: numbers of the lines whose results are there, all of them. Results of a line that are
    not complete, such as a last one that was cut off, are taken out when the file is opened. Raises BadInput where the file
    holds something else.
    """

    def __init__(self, path: Path, samples: int = 1):
        self.path, self.done = path, set[int]()
        kept = self._read(samples) if path.exists() else ""
        if path.exists() and kept != path.read_text("utf-8", errors="replace"):
            draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with writing(path):
                draft.write_text(kept, "utf-8")
                os.replace(draft, path)
        with writing(path):
            self._file: IO[str] = path.open("a", encoding="utf-8")

    def _read(self, samples: int) -> str:
        entries: dict[int, list[str]] = {}
        failed: set[int] = set()
        *lines, _ = self.path.read_text("utf-8", errors="replace").split("\n")
        for place, text in enumerate(lines):
            try:
                entry = json.loads(text)
                number = int(entry["line"])
            except (ValueError, KeyError, TypeError):
                raise BadInput(
                    f"line {place + 1} of {self.path} is no result of a job; give --output another file."
                ) from None
            entries.setdefault(number, []).append(text)
            if "error" in entry:
                failed.add(number)
        self.done = {number for number, told in entries.items() if len(told) == (1 if number in failed else samples)}
        return "".join(f"{text}\n" for number, told in entries.items() if number in self.done for text in told)

    def write(self, number: int, entries: list[dict[str, Any]]) -> None:
        """Add the results of a line, all at once; nothing where they are there already."""
        if number in self.done:
            return
        with writing(self.path):
            self._file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
            self._file.flush()
        self.done.add(number)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def many(
    lm: LanguageModel,
    source: str,
    lines: list[Line],
    method: str | None,
    settings: dict[str, Any],
    batch_size: int,
    into: Path | None = None,
) -> None:
    """Decode lines, with results in their order on standard output, or added to a file; those that it has are left out."""
    with nullcontext() if into is None else Results(into, settings.get("n", 1)) as results:
        left = [line for line in lines if results is None or line.number not in results.done]
        checked = [admitted(lm, source, line, method, settings) for line in left]
        done, failed = len(lines) - len(left), False
        with Counter(shown=not output().is_terminal or results is not None) as counter:
            counter("lines", done, len(lines))
            for batch in batches(checked, batch_size):
                told, interrupted = decoded(lm, source, batch, method, settings)
                for line, entries in zip(batch, told, strict=True):
                    failed |= "error" in entries[0]
                    if results is None:
                        for entry in entries:
                            print_json(entry)
                    elif not interrupted:
                        results.write(line.number, entries)
                if interrupted:
                    notice(f"interrupted after {done} of {len(lines)} lines; those of the last batch are not finished.")
                    raise typer.Exit(INTERRUPTED)
                done += len(batch)
                counter("lines", done, len(lines))
    if failed:
        raise typer.Exit(2)


def many_on_ray(
    model: Mapping[str, Any],
    source: str,
    lines: list[Line],
    method: str | None,
    settings: dict[str, Any],
    batch_size: int,
    into: Path,
    workers: int,
) -> None:
    """The same on workers of Ray Data. This process alone writes, so that no line stands there twice, whatever dies. model:
    what `decodery.load` is given."""
    with needs("decodery generate --ray", "ray"):
        from decodery.integrations.ray_jobs import done_by_workers
    arguments = {"model": model, "source": source, "method": method, "settings": settings}
    failed = False
    with Results(into, settings.get("n", 1)) as results, Counter(shown=True) as counter:
        left = [line for line in lines if line.number not in results.done]
        before = len(results.done)
        counter("lines", len(lines) - len(left), len(lines))
        for row in done_by_workers(LineDecoder, arguments, left, workers=workers, batch_size=batch_size):
            entries = json.loads(row["results"])
            failed |= "error" in entries[0]
            results.write(int(row["number"]), entries)
            counter("lines", len(lines) - len(left) + len(results.done) - before, len(lines))
    if failed:
        raise typer.Exit(2)


def conversations(lines: list[Line], chat: bool, system: str | None, tools: Any) -> list[Line]:
    """Lines whose prompts are what a user says, where that is asked for, and which may call `tools` beside their own."""
    return [
        line
        if line.error
        else replace(line, prompt=as_conversation(line.prompt, chat, system), tools=line.tools or tools)
        for line in lines
    ]


def admitted(lm: LanguageModel, source: str, line: Line, method: str | None, settings: dict[str, Any]) -> Line:
    """The line with its final prompt, or with the reason why it cannot be decoded, which is told at once."""
    if not line.error:
        try:
            if line.tools:  # each line has its own
                line = replace(line, prompt=lm.tokenize(line.prompt, line.tools, method))
            # Checks everything and starts nothing until it is iterated. An error that is not the prompt's own is
            # one of the whole command.
            lm.stream(line.prompt, method, **settings)
        except (BadPrompt, NotEnoughMemory) as error:
            line = replace(line, error=str(error))
    if line.error:
        notice(f"{source}, line {line.number}: {line.error}", style="red")
    return line


def batches(lines: list[Line], batch_size: int) -> Iterator[list[Line]]:
    """Runs of lines with at most `batch_size` good ones."""
    batch: list[Line] = []
    for line in lines:
        batch.append(line)
        if sum(not line.error for line in batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def decoded(
    lm: LanguageModel, source: str, batch: list[Line], method: str | None, settings: dict[str, Any]
) -> tuple[list[list[dict[str, Any]]], bool]:
    """What to tell of each line of a batch (an object per sample, or one with the error), and whether it was cut short."""
    prompts = [line.prompt for line in batch if not line.error]
    replies: list[Reply] = []
    interrupted = False
    if prompts:
        stream = lm.stream(prompts, method, **settings)
        try:
            for _ in stream:
                pass
        except KeyboardInterrupt:
            interrupted = True
        except Exception:
            replies = stream.replies()
            if all(reply.error is None for reply in replies):
                raise  # not one request's own
        replies = stream.replies()
    samples_each = len(replies) // max(1, len(prompts))
    results: list[list[dict[str, Any]]] = []
    for line in batch:
        if line.error:
            results.append([{"line": line.number, **line.labels, "error": line.error}])
            continue
        samples, replies = replies[:samples_each], replies[samples_each:]
        broken = next((reply.error for reply in samples if reply.error is not None), None)
        if broken is not None:
            reason = str(broken) or type(broken).__name__
            notice(f"{source}, line {line.number}: {reason}", style="red")
            results.append([{"line": line.number, **line.labels, "error": reason}])
            continue
        head = {"line": line.number, **line.labels}
        numbers = [{"sample": place} for place in range(len(samples))] if len(samples) > 1 else [{}]
        results.append(
            [
                {**head, **number, **Outcome.of(reply).as_dict(lm)}
                for number, reply in zip(numbers, samples, strict=True)
            ]
        )
    return results, interrupted


class LineDecoder:
    """Decodes batches of lines somewhere else, such as on a worker of Ray Data. model: what `decodery.load` is given."""

    def __init__(self, model: Mapping[str, Any], source: str, method: str | None, settings: Mapping[str, Any]):
        from decodery import loading

        self._lm = loading.load(**model)
        self._source, self._method, self._settings = source, method, dict(settings)

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """rows: under `item` pickled lines. Gives their numbers and their results, as JSON."""
        lines: list[Line] = [pickle.loads(given) for given in rows["item"]]
        checked = [admitted(self._lm, self._source, line, self._method, self._settings) for line in lines]
        told, _ = decoded(self._lm, self._source, checked, self._method, self._settings)
        return {"number": [line.number for line in lines], "results": [json.dumps(entries) for entries in told]}
