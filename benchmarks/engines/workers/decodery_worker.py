"""decodery itself: the native path on bfloat16 weights, or the same weights packed."""

from __future__ import annotations

from typing import Any

from lines import Answer, Ask, Engine, serve


class Decodery(Engine):
    """Ways are decoding methods. A session's memory is what a method keeps from request to request."""

    packages = ("decodery", "torch", "transformers")

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import decodery

        self._lm = decodery.load(
            settings["model"], dtype="bfloat16", threads=settings["threads"], fast=settings["fast"]
        )
        network: Any = self._lm.network
        weights = getattr(network, "_weights", None)
        return {
            "path": network.path,
            "threads": settings["threads"],
            # What a pass of one row reads: every matrix once, and of the cache each earlier row.
            "weight_bytes": None if weights is None else weights.bytes,
            "cache_bytes_per_token": network.cache_bytes(64) // 64,
        }

    def generate(self, ask: Ask) -> Answer:
        replies = self._lm.generate(
            ask.prompts,
            method=ask.way,
            max_new_tokens=ask.new_tokens,
            temperature=0.0,
            seed=0,
            ignore_eos=True,
            stop_token_ids=tuple(ask.ends),
            session=ask.session,
        )
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        return Answer(
            [reply.token_ids for reply in replies],
            min(reply.stats.first_token_seconds for reply in replies),
            {
                "rounds": sum(reply.stats.rounds for reply in replies),
                "drafted": sum(reply.stats.drafted for reply in replies),
                "accepted": sum(reply.stats.accepted for reply in replies),
            },
        )


if __name__ == "__main__":
    serve(Decodery())
