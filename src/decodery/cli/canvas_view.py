"""A canvas as it fills, or a text as it grows: drawn on a terminal, told line by line into a pipe, or written as an animated
HTML page."""

from __future__ import annotations

import colorsys
import html
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.text import Text

from decodery.cli.console import output, print_line, visible

if TYPE_CHECKING:
    from decodery.engine.events import Event, Inserted, Unmasked

MASK = "░░"
HUES = (0.58, -0.5)
"""The hue of the first step, and how far it turns until the last: from blue over green to red."""


@dataclass
class Filling:
    """What stands on a canvas, step by step, or in a text that grows by insertions. decode: the text of one token."""

    decode: Any
    cells: list[str | None] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)
    steps: list[tuple[int, dict[int, str]]] = field(default_factory=list)
    """Each step that filled something: its number, and offset -> text."""
    grows: bool = False
    """Whether steps insert: what stood at an offset, and behind it, then moves one place to the right."""

    def take(self, event: Unmasked | Inserted) -> str:
        """A step was taken; what it did, in a few words."""
        from decodery.engine.events import Inserted

        if isinstance(event, Inserted):
            return self._insert(event)
        if not self.cells:
            self.cells, self.step_of = [None] * event.length, [-1] * event.length
        texts = {offset: self._said(token) for offset, token in zip(event.offsets, event.tokens, strict=True)}
        for offset, text in texts.items():
            self.cells[offset], self.step_of[offset] = text, event.step
        self.steps.append((event.step, texts))
        return f"{len(event.offsets)} filled"

    def _insert(self, event: Inserted) -> str:
        self.grows = True
        text = self._said(event.token)
        self.cells.insert(event.offset, text)
        self.step_of.insert(event.offset, event.step)
        self.steps.append((event.step, {event.offset: text}))
        return "given" if event.step < 0 else f"{text} at {event.offset}"

    def _said(self, token: int) -> str:
        return visible(self.decode([token])).replace("\n", "⏎").replace("\t", "⇥").strip(" ") or "␣"

    def colour(self, step: int) -> str:
        """The colour of what a step has filled, as #rrggbb: steps close in time have similar ones; what is given is grey."""
        if step < 0:
            return "#8b93a1"
        share = step / max(len(self.cells) - 1, 1)
        red, green, blue = colorsys.hls_to_rgb((HUES[0] + HUES[1] * min(share, 1.0)) % 1.0, 0.62, 0.75)
        return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"

    def line(self) -> str:
        """The canvas in plain text."""
        return " ".join(MASK if cell is None else cell for cell in self.cells)

    def drawing(self, caption: str) -> Text:
        """The canvas in colours, with a caption."""
        text = Text()
        for cell, step in zip(self.cells, self.step_of, strict=True):
            text.append(MASK if cell is None else cell, style="dim" if cell is None else self.colour(step)).append(" ")
        return text.append(f"\n{caption}", style="dim")


def follow(events: Iterable[Event], filling: Filling, shown: bool) -> None:
    """Take the steps that the events of one request tell. shown: draw them as they come; in a pipe, a line per step."""
    from decodery.engine.events import Inserted, Unmasked

    console = output()
    if not shown or not console.is_terminal:
        for event in events:
            if isinstance(event, Unmasked | Inserted):
                filling.take(event)
                if shown:
                    count = len(event.offsets) if isinstance(event, Unmasked) else 1
                    print_line(f"step {event.step:>3}  +{count:<3} {filling.line()}")
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        for event in events:
            if isinstance(event, Unmasked | Inserted):
                caption = f"step {event.step}: {filling.take(event)}"
                live.update(filling.drawing(caption), refresh=True)


def page(filling: Filling, prompt: str, caption: str) -> str:
    """The filling as a page of HTML that needs nothing else: it plays by itself, and a slider goes to any step."""
    steps = [
        {"step": step, "cells": [[offset, text, filling.colour(step)] for offset, text in texts.items()]}
        for step, texts in filling.steps
    ]
    # "</" would end the script wherever it stands.
    told = {"length": len(filling.cells), "grows": filling.grows, "steps": steps}
    data = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
    title = "A text growing" if filling.grows else "A canvas filling"
    return _PAGE.format(
        title=title, prompt=html.escape(prompt), caption=html.escape(caption), data=data, last=len(steps)
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.9 ui-monospace, monospace; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  background: #16181d; color: #d7dae0; }}
.prompt {{ color: #8b93a1; white-space: pre-wrap; }}
.cell {{ display: inline-block; min-width: 1.4em; margin: 2px; padding: 0 .35em; border-radius: 4px; text-align: center;
  background: #23262e; color: #4b5160; transition: background .3s; white-space: pre; }}
.cell.filled {{ color: #16181d; }}
.cell.now {{ outline: 2px solid #fff; }}
.caption {{ color: #8b93a1; font-size: .85em; }}
input {{ width: 20rem; vertical-align: middle; }}
</style>
</head>
<body>
<p class="prompt">{prompt}</p>
<p id="canvas"></p>
<p><button id="play">pause</button> <input id="at" type="range" min="0" max="{last}" value="0"> <span id="told"></span></p>
<p class="caption">{caption}</p>
<script>
const data = {data};
const canvas = document.getElementById("canvas"), at = document.getElementById("at");
const told = document.getElementById("told"), play = document.getElementById("play");
let cells = [];
function add(offset) {{
  const cell = document.createElement("span");
  cell.className = "cell";
  canvas.insertBefore(cell, cells[offset] || null);
  cells.splice(offset, 0, cell);
}}
function show(count) {{
  canvas.replaceChildren();
  cells = [];
  if (!data.grows) for (let i = 0; i < data.length; i++) {{ add(i); cells[i].textContent = "\\u00b7"; }}
  data.steps.slice(0, count).forEach((step, place) => step.cells.forEach(([offset, text, colour]) => {{
    if (data.grows) add(offset);
    const cell = cells[offset];
    cell.textContent = text;
    cell.style.background = colour;
    cell.className = "cell filled" + (place === count - 1 ? " now" : "");
  }}));
  told.textContent = count ? "step " + data.steps[count - 1].step : data.grows ? "empty" : "all masked";
  at.value = count;
}}
let count = 0, playing = true;
setInterval(() => {{
  if (!playing) return;
  show(count);
  count = count < data.steps.length ? count + 1 : 0;
}}, 500);
play.onclick = () => {{ playing = !playing; play.textContent = playing ? "pause" : "play"; }};
at.oninput = () => {{ playing = false; play.textContent = "play"; count = Number(at.value); show(count); }};
show(0);
</script>
</body>
</html>
"""
