"""Context-free grammars as regular expressions: what is linear becomes a loop, what nests is written out to a depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from decodery.errors import Refused
from decodery.sampling.structured.expressions import Expression, any_of, deepest, group, literal

if TYPE_CHECKING:
    from lark.grammar import Symbol

Known = Mapping[str, "str | None"]
"""Rule -> the expression of its texts, None where it has none so shallow."""
EMPTY_OPTIONS = "%llguidance {}"
"""How llguidance's translation of a GBNF grammar begins."""


def grammar_expression(text: str) -> Expression:
    """The sentences of a grammar in Lark's or GBNF's form. Raises Refused for what the package lark does not read."""
    grammar = ContextFreeGrammar.read(text)

    def written(nesting: int) -> tuple[str | None, bool]:
        unrolling = Unrolling(grammar, nesting)
        return unrolling.texts("start", {}), unrolling.cut

    return deepest(written)


@dataclass(frozen=True)
class ContextFreeGrammar:
    """rules: the alternatives of each, as symbols. terminals: the expression of each symbol that is no rule."""

    rules: Mapping[str, Sequence[Sequence[str]]]
    terminals: Mapping[str, str]

    @classmethod
    def read(cls, text: str) -> ContextFreeGrammar:
        """A grammar as a user gives it. Raises Refused."""
        from lark.exceptions import LarkError
        from lark.load_grammar import load_grammar
        from llguidance.gbnf_to_lark import gbnf_to_lark

        if "::=" in text:
            text = gbnf_to_lark(text).replace(EMPTY_OPTIONS, "", 1)
        try:
            loaded, _ = load_grammar(text, "the grammar", [], True)
            terminals, rules, ignored = loaded.compile(["start"], "*")
        except LarkError as error:
            said = str(error).strip().partition("\n")[0].rstrip(" :.")
            raise Refused(
                f"structured_outputs cannot be kept to on a canvas, since the package lark does not read its grammar: {said}."
            ) from None
        written = {terminal.name: _pattern(terminal.pattern) for terminal in terminals}
        if ignored:
            between = group("|".join(written[name] for name in ignored)) + "*"
            written = {name: pattern + between for name, pattern in written.items()}
        alternatives: dict[str, list[list[str]]] = {}
        for rule in rules:
            alternatives.setdefault(rule.origin.name, []).append([_name(symbol) for symbol in rule.expansion])
        return cls(alternatives, written)

    def endless(self) -> list[str]:
        """The rules that a text may begin with or lead to, and that no text comes to the end of."""
        ending: set[str] = set()
        while more := {
            name
            for name, alternatives in self.rules.items()
            if name not in ending and any(all(s in ending or s in self.terminals for s in row) for row in alternatives)
        }:
            ending |= more
        reached, left = {"start"}, ["start"]
        while left:
            found = {s for row in self.rules[left.pop()] for s in row if s in self.rules} - reached
            reached |= found
            left += found
        return sorted(reached - ending)


@dataclass
class Unrolling:
    """A grammar written out to a nesting. cut: whether something deeper was left out."""

    grammar: ContextFreeGrammar
    nesting: int
    cut: bool = field(default=False, init=False)

    def texts(self, name: str, known: Known) -> str | None:
        """The expression of a symbol's texts; None where it has none so shallow. known: those of some rules."""
        if name in known:
            return known[name]
        if name in self.grammar.terminals:
            return self.grammar.terminals[name]
        within = self._component(name, known)
        if not within:
            return self._once(name, known)
        for left in (True, False):
            if self._linear(within, left):
                return self._solved(name, within, known, left)
        found: str | None = None
        for _ in range(self.nesting + 1):
            found = self._once(name, {**known, name: found})
        self.cut = True
        return found

    def _once(self, name: str, known: Known) -> str | None:
        """The alternatives of a rule, each symbol by its own texts; where one begins with the rule itself, as a loop."""
        loops: list[str] = []
        others: list[str] = []
        for symbols in self.grammar.rules[name]:
            first = bool(symbols) and symbols[0] == name
            pattern = self._row(symbols[1:] if first else symbols, known)
            if pattern is not None:
                (loops if first else others).append(pattern)
        if not others:
            return None
        return group(any_of(others)) + (group("|".join(loops)) + "*" if loops else "")

    def _row(self, symbols: Sequence[str], known: Known) -> str | None:
        found = [self.texts(symbol, known) for symbol in symbols]
        return None if None in found else "".join(group(pattern) for pattern in found if pattern)

    def _reached(self, name: str, known: Known) -> set[str]:
        """The rules that a rule leads to."""
        seen: set[str] = set()
        left = [name]
        while left:
            for symbols in self.grammar.rules[left.pop()]:
                for symbol in symbols:
                    if symbol in self.grammar.rules and symbol not in known and symbol not in seen:
                        seen.add(symbol)
                        left.append(symbol)
        return seen

    def _component(self, name: str, known: Known) -> list[str]:
        """The rules that lead to each other and to this one, in the grammar's order; none where it does not lead to itself."""
        reached = self._reached(name, known)
        if name not in reached:
            return []
        return [rule for rule in self.grammar.rules if rule in reached and name in self._reached(rule, known)]

    def _linear(self, within: Sequence[str], left: bool) -> bool:
        """Whether in no alternative of these rules one of them stands elsewhere than at its left (or right) end."""
        for rule in within:
            for symbols in self.grammar.rules[rule]:
                inner = symbols[1:] if left else symbols[:-1]
                if any(symbol in within for symbol in inner):
                    return False
        return True

    def _solved(self, name: str, within: Sequence[str], known: Known, left: bool) -> str | None:
        """The texts of a rule of a linear component, by Arden's lemma: one rule after the other is put into the others."""
        steps: dict[str, dict[str, list[str]]] = {rule: {} for rule in within}
        ends: dict[str, list[str]] = {rule: [] for rule in within}
        for rule in within:
            for symbols in self.grammar.rules[rule]:
                edge = symbols[0 if left else -1] if symbols else ""
                rest = symbols if edge not in within else symbols[1:] if left else symbols[:-1]
                pattern = self._row(rest, known)
                if pattern is not None:
                    (steps[rule].setdefault(edge, []) if edge in within else ends[rule]).append(pattern)

        def joined(inner: str, outer: str) -> str:
            return group(inner) + group(outer) if left else group(outer) + group(inner)

        for gone in [rule for rule in within if rule != name] + [name]:
            loops = steps[gone].pop(gone, [])
            if loops:
                loop = f"{group('|'.join(loops))}*"
                ends[gone] = [joined(pattern, loop) for pattern in ends[gone]]
                steps[gone] = {
                    rule: [joined(pattern, loop) for pattern in patterns] for rule, patterns in steps[gone].items()
                }
            for rule in within:
                for pattern in steps[rule].pop(gone, []) if rule != gone else []:
                    ends[rule] += [joined(end, pattern) for end in ends[gone]]
                    for other, patterns in steps[gone].items():
                        steps[rule].setdefault(other, []).extend(joined(one, pattern) for one in patterns)
        return any_of(ends[name]) if ends[name] else None


def _name(symbol: Symbol) -> str:
    return str(symbol.name)


def _pattern(pattern: object) -> str:
    from lark.lexer import PatternStr

    if isinstance(pattern, PatternStr) and not pattern.flags:
        return literal(pattern.value)
    return group(pattern.to_regexp())  # type: ignore[attr-defined]
