"""Jobs on Ray Data: workers that each make something once, such as a model, and then are handed what is to be done."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data

from decodery.errors import BadSetting


def done_by_workers(
    worker: type,
    arguments: Mapping[str, Any],
    items: Sequence[Any],
    *,
    workers: int,
    batch_size: int,
    cpus: float = 1,
) -> Iterator[dict[str, Any]]:
    """What workers make of items, row by row, in any order. What a worker that dies was handed goes to another, so that a row
    may come twice.

    worker: made with the arguments on each worker; called with batches, under `item` the pickled items, and gives columns.
    Joins the Ray cluster that is there, or begins one on this machine. Raises BadSetting where it has too few processors.
    """
    if not items:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    there = ray.cluster_resources().get("CPU", 0)
    if workers * cpus > there:
        raise BadSetting(f"{workers} workers need {workers * cpus:g} processors, and the Ray cluster has {there:g}.")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items(
        [{"item": pickle.dumps(item)} for item in items], override_num_blocks=-(-len(items) // batch_size)
    )
    done = rows.map_batches(
        worker,
        fn_constructor_kwargs=dict(arguments),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        max_restarts=-1,
        max_task_retries=-1,
    )
    yield from done.iter_rows()
