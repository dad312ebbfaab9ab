"""Who takes part: the processes, what they load, and the ways of decoding they are asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environments import python_of
from .model_files import ModelFiles
from .worker import SCRIPTS, Worker

ENGINES = ("decodery", "transformers", "vllm", "llamacpp", "openvino")
PLAIN = "decodery autoregressive"
"""Its answers are what all others are compared with; it always takes part."""
CASCADE = "decodery cascade"
INTEGER = "decodery cascade, integer"
NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
"""vLLM's n-gram speculation as its documentation sets it, with its usual least n-gram for texts."""


@dataclass(frozen=True)
class Entrant:
    """One row of the report.

    worker: the process it is asked of. way: what that process is asked for. weights: "bf16" or "4-bit", the precision class.
    most_together: the largest batch it can decode (None: any). rounds: how many rounds it takes part in (None: all), for what
    is too slow to wait for.
    """

    name: str
    worker: str
    way: str
    weights: str
    most_together: int | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Plan:
    """One process. engine: of ENGINES; decodery runs in our own environment, every other in one of its name. settings: for its
    `load`. variables: environment variables."""

    name: str
    engine: str
    script: str
    settings: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, folder: Path) -> Worker:
        """Start the process, with nothing loaded yet."""
        own = self.engine == "decodery"
        python = Path(sys.executable) if own else python_of(folder, self.engine)
        log = folder / "logs" / f"{self.name}.log"
        return Worker(self.name, python, SCRIPTS / self.script, log, self.variables, keep_path=own)


def plans(
    files: ModelFiles, folder: Path, engines: Sequence[str], *, threads: int, context: int, batches: Sequence[int]
) -> list[Plan]:
    """The processes of these engines. context: most tokens of prompt and answer together. batches: sizes that will be asked."""
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    common = {"threads": threads, "context": context, "batches": list(batches)}
    vllm = variables | _vllm_variables(folder)
    told = {key: value for key, value in vllm.items() if key.startswith(("VLLM_CPU", "VLLM_ENABLE", "KMP"))}
    told["LD_PRELOAD"] = " ".join(Path(path).name for path in vllm["LD_PRELOAD"].split(":"))

    def plan(name: str, engine: str, given: Mapping[str, str] = variables, **settings: Any) -> Plan:
        return Plan(name, engine, f"{engine}_worker.py", common | settings, given)

    checkpoint = str(files.checkpoint)
    found = [
        plan("decodery", "decodery", model=checkpoint, fast="native"),
        plan("decodery-integer", "decodery", model=checkpoint, fast="integer"),
        plan("transformers", "transformers", folder=checkpoint),
        plan("vllm", "vllm", vllm, folder=checkpoint, environment=told),
        plan("vllm-ngram", "vllm", vllm, folder=checkpoint, environment=told, speculation=NGRAM),
        plan("llamacpp-bf16", "llamacpp", file=str(files.bfloat16_gguf)),
        plan("llamacpp-file", "llamacpp", file=str(files.gguf)),
        plan("llamacpp-q4_0", "llamacpp", file=str(files.q4_0_gguf)),
        plan("openvino-bf16", "openvino", folder=str(files.openvino("bf16"))),
        plan("openvino-4-bit", "openvino", folder=str(files.openvino("4-bit"))),
    ]
    return [plan for plan in found if plan.engine in engines]


def entrants() -> list[Entrant]:
    """All that can take part, in the order of the report."""
    return [
        Entrant(PLAIN, "decodery", "autoregressive", "bf16"),
        Entrant(CASCADE, "decodery", "cascade", "bf16"),
        Entrant("decodery autoregressive, integer", "decodery-integer", "autoregressive", "4-bit"),
        Entrant(INTEGER, "decodery-integer", "cascade", "4-bit"),
        Entrant("transformers generate", "transformers", "plain", "bf16"),
        Entrant("transformers prompt lookup", "transformers", "prompt lookup", "bf16", 1),
        Entrant("transformers assisted", "transformers", "assisted", "bf16", 1, 1),
        Entrant("vLLM", "vllm", "", "bf16"),
        Entrant("vLLM n-gram", "vllm-ngram", "", "bf16"),
        Entrant("llama.cpp BF16", "llamacpp-bf16", "plain", "bf16"),
        Entrant("llama.cpp BF16, prompt lookup", "llamacpp-bf16", "prompt lookup", "bf16", 1),
        Entrant("llama.cpp, the file itself", "llamacpp-file", "plain", "4-bit"),
        Entrant("llama.cpp, the file itself, prompt lookup", "llamacpp-file", "prompt lookup", "4-bit", 1),
        Entrant("llama.cpp Q4_0", "llamacpp-q4_0", "plain", "4-bit"),
        Entrant("OpenVINO bf16", "openvino-bf16", "plain", "bf16"),
        Entrant("OpenVINO bf16, prompt lookup", "openvino-bf16", "prompt lookup", "bf16", 1),
        Entrant("OpenVINO 4-bit", "openvino-4-bit", "plain", "4-bit"),
        Entrant("OpenVINO 4-bit, prompt lookup", "openvino-4-bit", "prompt lookup", "4-bit", 1),
    ]


def _vllm_variables(folder: Path) -> dict[str, str]:
    """What vLLM's page on CPUs asks for: a bounded cache of keys, Intel's OpenMP, and tcmalloc where the system has it.

    One process, and so the variables of OpenMP that vLLM gives its own processes: of two cores these would compute with one
    and keep the other for the scheduler.
    """
    intel = sorted((folder / "vllm").glob("lib/libiomp5.so"))
    allocator = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")) or sorted(
        (folder / "vllm").glob("lib/python*/site-packages/vllm/libs/libtcmalloc*.so*")
    )
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    found = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(folder / "cache" / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": ":".join(str(path) for path in [*allocator[:1], *intel]),
    }
    if intel:
        found |= {
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
    return found
