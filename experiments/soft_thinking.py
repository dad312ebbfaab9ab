"""Soft thinking: whether a network follows one token of a mixture, how far traces are from the greedy one, and sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.intervals import Array
from decodery.evaluation.parallelbench.text_metrics import rouge_l
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.replies import Reply
from decodery.search import answers
from decodery.search.soft_thinking.probes import Threads, lens_overlaps, threads
from experiments.cautious_next_token import Problem, problems
from experiments.counterfactual_generation import Beginning, beginnings
from experiments.texts import loaded

NOISES = ("vanilla", "dirichlet", "gumbel")
LAW: dict[str, Any] = {"temperature": 0.6, "top_k": 30, "top_p": 0.95}
"""The published law."""


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    beside: str = "gemma3-270m"
    prompts: int = 40
    steps: int = 24
    problems: int = 150
    answer: int = 24
    seed: int = 0


def texts(settings: Settings) -> list[Beginning]:
    """One of each story."""
    return beginnings(settings.prompts, settings.steps, settings.seed)[::2]


def thought(lm: LanguageModel, item: Beginning, spec: str, settings: Settings, **law: Any) -> Reply:
    reply: Reply = lm.generate(
        item.text,
        spec,
        seed=settings.seed + item.number,
        max_new_tokens=settings.steps,
        ignore_eos=True,
        **(law or LAW),
    )
    return reply


def one_thread(settings: Settings, beside: bool = False) -> Study:
    lm = loaded(settings.beside if beside else settings.model)
    items: list[Threads] = []
    for item in texts(settings):
        reply = thought(lm, item, f"soft-thinking(noise=vanilla, steps={settings.steps})", settings)
        items += lm.run(threads(lm.network, reply.prompt_token_ids, reply.stats.details["thinking"]))

    def arm(label: str, read: Callable[[Threads], float]) -> Arm:
        def measure(step: Threads) -> Mapping[str, float]:
            return {"divergence": read(step), "nearer": float(step.to_first < step.to_second)}

        return Arm(label, measure)

    first, second = "mixture and its first", "mixture and its second"

    def ratio(look: Callable[[str, str], Array], label: str) -> Array:
        return look(label, "median") / look(second, "median")

    arms = [
        arm(first, lambda step: step.to_first),
        arm(second, lambda step: step.to_second),
        arm("first and second", lambda step: step.first_to_second),
    ]
    figures = [
        Figure("median", "divergence", middle=True, form=".3f"),
        Figure("mean", "divergence", form=".3f"),
        Figure("nearer to the first", "nearer", form=".0%", share=True),
        Figure("ratio", derive=ratio, form=".2f"),
    ]
    claims = [
        PublishedClaim("what follows a mixture is what follows its heaviest token", "ratio", first, 0.25, above=False),
    ]
    about = (
        f"{len(items)} steps of vanilla thinking with two tokens or more, from continuations of {settings.prompts} first "
        "sentences of stories; Jensen-Shannon divergence of the next laws, in nats. Steps of one text are not independent."
    )
    return Study(about, items, arms, figures, claims, arms_are="laws", lm=lm)


def traces(settings: Settings, beside: bool = False) -> Study:
    lm = loaded(settings.beside if beside else settings.model)

    @once_per_item
    def greedy(item: Beginning) -> list[str]:
        return [str(token) for token in thought(lm, item, "autoregressive", settings, temperature=0.0).token_ids]

    def arm(label: str, spec: str) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            trace = [str(token) for token in thought(lm, item, spec, settings).token_ids]
            return {"likeness": rouge_l(" ".join(trace), " ".join(greedy(item))), "same": float(trace == greedy(item))}

        return Arm(label, measure)

    arms = [arm("sampling", "autoregressive")]
    arms += [arm(noise, f"soft-thinking(noise={noise}, steps={settings.steps})") for noise in NOISES]
    figures = [Figure("ROUGE-L", "likeness", form=".3f"), Figure("the greedy trace", "same", form=".0%", share=True)]
    claims = [
        PublishedClaim(
            "vanilla thinking is nearer to greedy decoding than samples are", "ROUGE-L", "vanilla", "sampling"
        ),
        PublishedClaim("Gumbel noise explores again", "ROUGE-L", "gumbel", "vanilla", above=False),
        PublishedClaim("so does Dirichlet noise", "ROUGE-L", "dirichlet", "vanilla", above=False),
    ]
    about = (
        f"{settings.steps} tokens after each of {settings.prompts} first sentences; ROUGE-L of the written tokens to the "
        "greedy ones."
    )
    return Study(about, texts(settings), arms, figures, claims, lm=lm)


def lens(settings: Settings, beside: bool = False) -> Study:
    lm = loaded(settings.beside if beside else settings.model)

    @once_per_item
    def read(item: Beginning) -> list[tuple[float, float]]:
        prompt = lm.tokenize(item.text)
        with lm.working():
            [scores] = lm.network.run([Forward(lm.network.new_sequence(), prompt, logits=Rows.LAST)])
        first, second = scores.logits[0].topk(2).indices.tolist()
        found: list[tuple[float, float]] = lm.run(lens_overlaps(lm.network, prompt, first, second))
        return found

    def arm(layer: int) -> Arm:
        def measure(item: Beginning) -> Mapping[str, float]:
            first, second = read(item)[layer]
            return {"first": first, "second": second, "excess": first - second}

        return Arm(f"layer {layer + 1}", measure)

    layers = sorted({*range(0, lm.network.layers, 4), lm.network.layers - 1})
    figures = [
        Figure("as after the first", "first", form=".0%"),
        Figure("as after the second", "second", form=".0%"),
        Figure("excess", "excess", form=".2f"),
    ]
    last = f"layer {lm.network.layers}"
    claims = [PublishedClaim("in the last layer the heavier token has won", "excess", last, 0.0)]
    about = (
        f"A mixture of six tenths and four tenths of the two likeliest next tokens after each of {settings.prompts} first "
        "sentences; of the ten tokens that the head reads in a layer, how many it also reads after either token alone."
    )
    return Study(about, texts(settings), [arm(layer) for layer in layers], figures, claims, arms_are="read in", lm=lm)


def sums(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(label: str, spec: str, **law: Any) -> Arm:
        def measure(problem: Problem) -> Mapping[str, float]:
            reply = lm.chat(
                problem.text,
                method=spec,
                seed=settings.seed + problem.number,
                max_new_tokens=settings.steps + settings.answer,
                **(law or LAW),
            )
            return {
                "right": float(answers.parse(reply.text, "math") == str(problem.answer)),
                "tokens": float(reply.stats.new_tokens),
                "forwards": float(reply.stats.forwards),
            }

        return Arm(label, measure)

    arms = [arm("greedy", "autoregressive", temperature=0.0), arm("sampling", "autoregressive")]
    arms += [
        arm(noise, f"soft-thinking(noise={noise}, steps={settings.steps}, end=' The answer is')") for noise in NOISES
    ]
    figures = [Figure("right", "right", form=".0%", share=True), Figure("forwards/token", "forwards", per="tokens")]
    claims = [
        PublishedClaim("Gumbel noise is right more often than sampling", "right", "gumbel", "sampling"),
        PublishedClaim("and more often than vanilla thinking", "right", "gumbel", "vanilla"),
        PublishedClaim(
            "vanilla thinking gains nothing over greedy decoding", "right", "vanilla", "greedy", above=False
        ),
    ]
    about = (
        f"{settings.problems} sums in words; {settings.steps} steps of thinking, then the words ' The answer is'. The model "
        "was not trained to think."
    )
    return Study(about, problems(settings.problems, settings.seed), arms, figures, claims, lm=lm)


EXPERIMENT = Experiment(
    slug="soft_thinking",
    title="Soft thinking with randomness",
    source="arXiv 2508.03440",
    measures=("decodery.search.soft_thinking",),
    settings=Settings(),
    studies={
        "one_thread": one_thread,
        "one_thread_beside": partial(one_thread, beside=True),
        "traces": traces,
        "traces_beside": partial(traces, beside=True),
        "lens": lens,
        "lens_beside": partial(lens, beside=True),
        "sums": sums,
    },
)
