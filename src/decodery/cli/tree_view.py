"""The texts of a prompt as a tree: beams and tries of a search as it considers them, and samples where they part.

On a terminal it grows; into a pipe it goes once, when the texts are over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.text import Text

from decodery.cli.console import output, visible

if TYPE_CHECKING:
    from decodery.engine.events import Event

ROOT = -1
GUIDES = {"middle": "├─ ", "last": "└─ ", "below": "│  ", "nothing": "   "}
KEPT, LEFT, TOLD = "bold", "dim", "cyan"


@dataclass(frozen=True)
class TreeLine:
    """A line of the tree: a run of tokens on which no text parts from another. kept: it is part of a text that is given. told:
    what is said of its end."""

    guides: str
    text: str
    kept: bool
    told: str

    @property
    def plain(self) -> str:
        return f"{self.guides}{self.text}{'  ' * bool(self.told)}{self.told}"

    @property
    def drawn(self) -> Text:
        """On a terminal."""
        text = Text(self.guides, style=LEFT).append(self.text, style=KEPT if self.kept else LEFT)
        return text.append("  " + self.told, style=TOLD) if self.told else text


@dataclass
class TextTree:
    """All texts of one prompt, token by token. decode: the text of some tokens."""

    decode: Any
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    """Of nodes at which a text ended when it was told: what the method went by."""
    ends: dict[int, list[int]] = field(default_factory=dict)
    """Node -> the texts that end there, by number."""
    _places: dict[tuple[int, int], int] = field(default_factory=dict)
    _told: list[int] = field(default_factory=list)
    _at: dict[int, int] = field(default_factory=dict)

    def take(self, event: Event) -> bool:
        """Take an event in; whether the tree is another now."""
        from decodery.engine.events import Branched, Finished, Token

        if isinstance(event, Branched):
            for token, parent, score in zip(event.tokens, event.parents, event.scores, strict=True):
                node = self._grow(ROOT if parent == ROOT else self._told[parent], token)
                self._told.append(node)
                if score is not None:
                    self.scores[node] = score
        elif isinstance(event, Token):
            self._at[event.output] = self._grow(self._at.get(event.output, ROOT), event.token_id)
        elif isinstance(event, Finished):
            self.ends.setdefault(self._at.get(event.output, ROOT), []).append(event.output)
        else:
            return False
        return True

    def _grow(self, parent: int, token: int) -> int:
        place = parent, token
        if place not in self._places:
            self._places[place] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return self._places[place]

    def lines(self) -> Iterator[TreeLine]:
        """The tree from the top. Where one of several goes on to a text that is given, it stands below the others, with no
        guide before it: so a long text does not lead ever farther to the right."""
        children: dict[int, list[int]] = {ROOT: []}
        for node, parent in enumerate(self.parents):
            children[node] = []
            children[parent].append(node)
        kept = set()
        for node in self._at.values():
            while node != ROOT and node not in kept:
                kept.add(node)
                node = self.parents[node]
        several = len(self._at) > 1
        stack = self._hung("", children[ROOT], kept)
        if len(stack) > 1:
            yield TreeLine("", "(prompt)", True, "")
        while stack:
            first, below, node = stack.pop()
            run = [node]
            while (
                len(own := children[run[-1]]) == 1 and run[-1] not in self.ends and (own[0] in kept) == (node in kept)
            ):
                run.append(own[0])
            yield TreeLine(first, self._said(run), node in kept, self._ending(run[-1], bool(own), several))
            stack += self._hung(below, own, kept)

    @staticmethod
    def _hung(before: str, nodes: list[int], kept: set[int]) -> list[tuple[str, str, int]]:
        """Nodes behind one, the last first, with the guides of their own line and of those below it."""
        going = [node for node in nodes if node in kept]
        trunk = going[:1] if len(going) == 1 else []
        others = going[len(trunk) :] + [node for node in nodes if node not in kept]
        found = [(before, before, node) for node in trunk]
        for place, node in reversed(list(enumerate(others))):
            last = place == len(others) - 1 and not trunk
            own, below = ("last", "nothing") if last else ("middle", "below")
            found.append((before + GUIDES[own], before + GUIDES[below], node))
        return found

    def _said(self, run: list[int]) -> str:
        text = visible(self.decode([self.tokens[node] for node in run]))
        return text.replace("\n", "⏎").replace("\t", "⇥") or "∅"

    def _ending(self, node: int, goes_on: bool, several: bool) -> str:
        texts = [f"text {number + 1}" if several else "the text" for number in self.ends.get(node, [])]
        if node in self.scores and not goes_on:
            texts.append(f"{self.scores[node]:.2f}")
        return ", ".join(texts)

    def drawing(self) -> Text:
        """On a terminal."""
        return Text("\n").join(line.drawn for line in self.lines())


def follow(events: Iterable[Event], tree: TextTree) -> None:
    """Take the events of one prompt, and draw the tree: as it grows on a terminal, else when they are over."""
    console = output()
    if console.is_terminal:
        from rich.live import Live

        with Live(console=console, auto_refresh=False) as live:
            for event in events:
                if tree.take(event):
                    live.update(tree.drawing(), refresh=True)
        return
    try:
        for event in events:
            tree.take(event)
    finally:
        for line in tree.lines():
            console.out(line.plain, highlight=False)
