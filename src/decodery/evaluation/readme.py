"""Puts what the registry knows into the documents: `python -m decodery.evaluation.readme [FOLDER]`.

The README gets the methods by family, and each page in docs/methods its guarantee, its needs and its parameters. The folder
is that of the repository, by default the current one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from decodery.engine import registry
from decodery.engine.needs import Companion
from decodery.models.kinds import Kind

FAMILIES = {
    "sampling": "plain decoding and its laws",
    "speculative": "drafts are verified, several tokens a pass",
    "diffusion": "canvases of a masked-diffusion model are filled",
    "any-order": "holes of a text are filled, or it goes on, with a model of any order",
    "insertion": "tokens are inserted anywhere into a text that grows",
    "search": "several texts are decided together",
    "bytes": "texts are drawn byte by byte, whatever the tokens are",
    "constraints": "texts keep to a grammar by more than masking",
    "routing": "how a text is written is chosen before it begins",
}
"""What the families do."""
MODELS = {
    Kind.MASKED_POSITIONS: "diffusion-lists",
    Kind.ANY_ORDER: "any-subset-stories",
    Kind.INSERTIONS: "insertion-stars",
}
"""Models that come with the package, for methods that do not decode with the default one."""


def by_family() -> str:
    """All methods, a line for each family, with the guarantees that its methods give and links to their pages."""
    entries = registry.methods()
    lines = []
    for family in dict.fromkeys(entry.family for entry in entries):
        own = [entry for entry in entries if entry.family == family]
        grades = ", ".join(dict.fromkeys(str(entry.exactness) for entry in own))
        names = ", ".join(f"[`{entry.name}`](docs/methods/{entry.name}.md)" for entry in own)
        about = f" ({FAMILIES[family]})" if family in FAMILIES else ""
        lines.append(f"- **{family}**{about}; {grades}: {names}")
    return "\n".join(lines)


def replace(text: str, mark: str, content: str) -> str:
    """The text with `content` between `<!-- mark -->` and `<!-- /mark -->`. Raises ValueError where they are missing."""
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not found or not end:
        raise ValueError(f"{opening} … {closing} is missing")
    return f"{before}{opening}\n{content}\n{closing}{after}"


def page_head(entry: registry.MethodInfo) -> str:
    """What the page of a method says of its own accord."""
    shipped = next((name for kind, name in MODELS.items() if entry.suits(kind)), "")
    model = next((need.beside for need in entry.needs if isinstance(need, Companion) and need.beside), shipped)
    canvas = f" --model {model}" if shipped else ""
    prompt = '"…"' if canvas else '--chat "…"'
    lines = [
        f"- **Source:** {entry.paper}",
        f"- **Guarantee:** {entry.exactness}; `decodery check {entry.name}{canvas}` decides it by experiment",
        f"- **Needs:** {'; '.join(entry.wanted) or 'nothing'}",
        f"- **Run it:** `decodery generate {prompt} --method {entry.example}{canvas}`",
    ]
    lines += [f"- **Refuses** {setting}: {reason}" for setting, reason in entry.refuses.items()]
    if not entry.parameters:
        return "\n".join([*lines, "- **Parameters:** none"])
    lines += ["", "| parameter | type | default | range | meaning |", "|---|---|---|---|---|"]
    for item in entry.parameters:
        bounds = " | ".join(item.choices) if item.choices else ""
        if item.low is not None or item.high is not None:
            bounds = f"{'' if item.low is None else item.low} … {'' if item.high is None else item.high}"
        default = f"auto: {item.auto}" if item.default is None else repr(item.default)
        cells = (
            f"`{item.name}`",
            item.type,
            default,
            bounds,
            f"{item.help}; only {item.condition}" if item.only else item.help,
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def rewritten(folder: Path) -> dict[Path, str]:
    """The documents of a repository that hold generated parts, as they should read. Raises OSError where one is missing,
    and ValueError where its marks are."""
    readme = folder / "README.md"
    texts = {readme: replace(readme.read_text(), "methods", by_family())}
    for name in registry.BUILT_IN:
        page = folder / "docs" / "methods" / f"{name}.md"
        texts[page] = replace(page.read_text(), "registry", page_head(registry.MethodInfo.of(registry.find(name))))
    return texts


if __name__ == "__main__":
    for document, content in rewritten(Path(sys.argv[1] if len(sys.argv) > 1 else ".")).items():
        document.write_text(content)
