"""Where a number comes from: model, machine, versions, command. Stands beside every table."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from decodery._version import __version__
from decodery.language_model import LanguageModel
from decodery.models.processors import processors


def provenance(lm: LanguageModel, whole: bool = True) -> dict[str, Any]:
    """What a measurement with `lm` ran on, for JSON. whole: also the machine, its load and the command. The weights are those
    that the network was made of, whatever form they are kept in; `quantize` stands there where they were rounded first."""
    network = lm.network
    told = {
        "model": lm.name,
        "parameters": network.parameters or None,
        "dtype": str(network.dtype).removeprefix("torch."),
        "path": network.path if network.timed else "",
        **({} if network.quantize is None else {"quantize": network.quantize}),
        "device": str(network.device),
    }
    if not whole:
        return told
    return {
        **told,
        "hardware": torch.cuda.get_device_name(network.device) if network.device.type == "cuda" else processor(),
        **machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def machine() -> dict[str, Any]:
    """This machine and what runs on it, for JSON. load: processes that ran beside it, on average of the last minute."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {
            "decodery": __version__,
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "python": platform.python_version(),
        },
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The model name of the processor."""
    return ", ".join(sorted(processors().get("model name", ()))) or platform.processor() or platform.machine()
