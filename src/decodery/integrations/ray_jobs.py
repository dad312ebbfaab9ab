"""Jobs over files on Ray Data: lines are decoded by workers, each with a model of its own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data

from decodery.cli.jobs import LineDecoder
from decodery.cli.prompts import Line
from decodery.errors import BadSetting


def decode_lines(
    model: Mapping[str, Any],
    source: str,
    lines: Sequence[Line],
    method: str | None,
    settings: Mapping[str, Any],
    *,
    workers: int,
    batch_size: int,
    cpus: float = 1,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Decode lines on workers: numbers and results. A line whose worker dies is decoded by another, and may come
    twice. Raises BadSetting where the cluster has too few processors."""
    if not lines:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    there = ray.cluster_resources().get("CPU", 0)
    if workers * cpus > there:
        raise BadSetting(f"{workers} workers need {workers * cpus:g} processors, and the Ray cluster has {there:g}.")
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = -(-len(lines) // batch_size)
    rows = ray.data.from_items([{"line": pickle.dumps(line)} for line in lines], override_num_blocks=blocks)
    done = rows.map_batches(
        LineDecoder,
        fn_constructor_kwargs={"model": model, "source": source, "method": method, "settings": dict(settings)},
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in done.iter_rows():
        yield int(row["number"]), json.loads(row["results"])
