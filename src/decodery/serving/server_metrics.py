"""What Prometheus is told, under vLLM's names, so that its dashboards work; by model and method."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from decodery.serving.reply_metrics import draft_steps

if TYPE_CHECKING:
    from decodery.serving.engine_thread import Job
    from decodery.serving.served_models import ServedModels
    from decodery.serving.visit import Visit

LABELS = ("model_name", "method")
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class ServerMetrics:
    """Counts what was decoded. One registry for each server, since a process may have several."""

    def __init__(self, models: ServedModels):
        self.registry = CollectorRegistry()
        self._models = models
        self.registry.register(_Now(models))
        counters = {
            "prompt_tokens": "Tokens of prompts.",
            "generation_tokens": "New tokens.",
            "prefix_cache_hits": "Rows of prompts that were there already.",
            "prefix_cache_queries": "Tokens of prompts that were looked for.",
            "spec_decode_num_drafts": "Drafts that were verified.",
            "spec_decode_num_draft_tokens": "Drafted tokens that were verified.",
            "spec_decode_num_accepted_tokens": "Drafted tokens that were accepted.",
            "forwards": "Passes of the model, each counted for every request in it.",
        }
        self._counters = {name: self._counter(name, said, LABELS) for name, said in counters.items()}
        self._ended = self._counter("request_success", "Requests by how they ended.", (*LABELS, "finished_reason"))
        self._answers = Counter(
            "decodery:http_requests", "Answers by path and status.", ("path", "status"), registry=self.registry
        )
        histograms = {
            "time_to_first_token_seconds": ("From the request's arrival to its first token.", SECONDS),
            "inter_token_latency_seconds": ("Between tokens; those of one pass share its time.", BETWEEN),
            "request_queue_time_seconds": ("Until decoding began: for a place, and for memory.", SECONDS),
            "e2e_request_latency_seconds": ("From the request's arrival to its end.", SECONDS),
            "request_prompt_tokens": ("Tokens of a request's prompts.", TOKENS),
            "request_generation_tokens": ("New tokens of a request.", TOKENS),
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", said, LABELS, buckets=borders, registry=self.registry)
            for name, (said, borders) in histograms.items()
        }

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def answered(self, path: str, status: int) -> None:
        """An HTTP request was answered. path: a route, not what was asked for."""
        self._answers.labels(path, str(status)).inc()

    def decoded(self, model: str, job: Job, visit: Visit, queued: float) -> None:
        """A job is over; the log line of its visit tells of it too. queued: seconds that it waited for its place."""
        assert job.prepared is not None
        replies = job.prepared.replies()
        first = replies[0]
        labels = model, job.prepared.entries[0][1].name
        every = list({id(reply.stats): reply.stats for reply in replies}.values())
        prompts = sum(len(reply.prompt_token_ids) for reply in replies if reply.output == 0)
        steps = draft_steps(replies)
        counts = {
            "prompt_tokens": prompts,
            "generation_tokens": sum(s.new_tokens for s in every),
            "prefix_cache_hits": sum(s.shared_rows for s in every),
            "prefix_cache_queries": sum(len(reply.prompt_token_ids) for reply in replies),
            "spec_decode_num_drafts": len(steps),
            "spec_decode_num_draft_tokens": sum(step[0] for step in steps),
            "spec_decode_num_accepted_tokens": sum(step[1] for step in steps),
            "forwards": sum(s.forwards for s in every),
        }
        for name, count in counts.items():
            self._counters[name].labels(*labels).inc(count)
        for reply in replies:
            self._ended.labels(*labels, reply.finish_reason).inc()
        arrived = visit.arrived
        observed = {
            "request_queue_time_seconds": queued + max(s.queued_seconds for s in every),
            "e2e_request_latency_seconds": max(s.started + s.seconds for s in every) - arrived,
            "request_prompt_tokens": prompts,
            "request_generation_tokens": counts["generation_tokens"],
        }
        if job.bursts:
            observed["time_to_first_token_seconds"] = min(times[0][0] for times in job.bursts.values()) - arrived
        for name, value in observed.items():
            self._histograms[name].labels(*labels).observe(value)
        between = self._histograms["inter_token_latency_seconds"].labels(*labels)
        for times in job.bursts.values():
            for (before, _), (now, count) in pairwise(times):
                for _ in range(count):
                    between.observe((now - before) / count)
        visit.told |= {
            "method": first.method,
            "prompt_tokens": prompts,
            "completion_tokens": counts["generation_tokens"],
            "finish_reason": first.finish_reason,
            "queued_seconds": round(observed["request_queue_time_seconds"], 4),
        }

    def _counter(self, name: str, said: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"vllm:{name}", said, labels, registry=self.registry)


class _Now:
    """What is so at the moment when Prometheus asks."""

    def __init__(self, models: ServedModels):
        self._models = models

    def collect(self) -> Iterator[Any]:
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests that are decoded.", labels=["model_name"])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=["model_name"])
        used = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the KV budget in use.", labels=["model_name"])
        held = GaugeMetricFamily("decodery:kv_bytes", "Bytes of the KV budget in use.", labels=["model_name"])
        for name, model in list(self._models.loaded.items()):
            behind = model.engine.scheduler.waiting
            budget = model.lm.budget
            running.add_metric([name], model.engine.scheduler.active - behind)
            waiting.add_metric([name], model.gate.waiting + behind)
            used.add_metric([name], budget.held / budget.total if budget.total else 0.0)
            held.add_metric([name], budget.held)
        return iter((running, waiting, used, held))
