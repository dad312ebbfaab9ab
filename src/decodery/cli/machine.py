"""What a measurement ran on, in words."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel


def describe(lm: LanguageModel) -> dict[str, str | int]:
    """Model, number format and hardware of a language model as it is loaded."""
    import torch

    device = torch.device(getattr(lm.network, "device", "cpu"))
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "model": lm.name,
        "dtype": str(getattr(lm.network, "dtype", "float32")).removeprefix("torch."),
        "device": str(device),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
    }


def in_words(described: dict[str, str | int]) -> str:
    """The description on one line."""
    threads = described["threads"]
    return (
        f"{described['model']} in {described['dtype']} on {described['hardware']}, "
        f"{threads} thread{'' if threads == 1 else 's'}"
    )


def processor() -> str:
    """The model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
