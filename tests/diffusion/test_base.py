"""What all methods of canvases share: the memory they ask for, what they refuse before work starts, and wrapped samplers."""

from __future__ import annotations

from typing import Any

import pytest

from decodery.diffusion.base import DiffusionMethod
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, BadPrompt, BadSetting, Refused
from decodery.testing import toy_diffusion_model
from decodery.testing.outputs import new_request


@pytest.fixture(scope="module")
def lm() -> Any:
    return toy_diffusion_model()


def _request(lm: Any, spec: str, prompt: list[int], **settings: Any) -> tuple[Any, Any]:
    return new_request(lm, spec, prompt, Settings(seed=0, **settings))


@pytest.mark.parametrize(("guidance", "sequences"), [(0.0, 1), (1.5, 2)])
def test_prompt_and_canvas_are_cached_and_with_guidance_twice(lm: Any, guidance: float, sequences: int) -> None:
    request, method = _request(lm, f"masked-diffusion(gen_length=8, cfg_scale={guidance})", [1, 2, 3])
    assert method.caches(request) == [(lm.network, 11)] * sequences


def test_the_canvas_is_as_long_as_asked_or_as_the_model_s_or_the_output(lm: Any) -> None:
    canvas = lm.network.masked.canvas
    for spec, most, length in (
        ("masked-diffusion(gen_length=5)", 99, 5),
        ("masked-diffusion", canvas - 1, canvas - 1),
        ("masked-diffusion", canvas, canvas),
        ("masked-diffusion", canvas + 1, canvas),
    ):
        request, method = _request(lm, spec, [1], max_new_tokens=most)
        assert method.plan(request).length == length
        assert method.plan(request).steps == length
    request, method = _request(lm, "masked-diffusion(gen_length=8, steps=4, block_length=4)", [1])
    assert (method.plan(request).steps, method.block(8), method.block(3)) == (4, 4, 3)


def test_prompt_and_canvas_must_fit_the_context(lm: Any) -> None:
    context = lm.network.context
    _request(lm, f"masked-diffusion(gen_length={context - 3})", [1, 2, 3])
    with pytest.raises(BadPrompt, match=f"together {context + 1}, but .* has a context of {context}"):
        _request(lm, f"masked-diffusion(gen_length={context - 2})", [1, 2, 3])


def test_what_a_canvas_cannot_give_is_refused(lm: Any) -> None:
    _request(lm, "masked-diffusion(gen_length=4)", [1], min_new_tokens=4)
    with pytest.raises(BadSetting, match="min_new_tokens is 5, but the canvas has only 4 positions"):
        _request(lm, "masked-diffusion(gen_length=4)", [1], min_new_tokens=5)
    _request(lm, "masked-diffusion", [1], echo=True)
    _request(lm, "masked-diffusion", [1], logprobs=2)
    with pytest.raises(Refused, match="echo and logprobs together"):
        _request(lm, "masked-diffusion", [1], echo=True, logprobs=2)
    with pytest.raises(BadParameter, match="shift_row=compute does something only with a shifted model"):
        _request(lm, "masked-diffusion(shift_row=compute, cache=prefix)", [1])


@pytest.mark.parametrize(
    ("steps", "block", "fits"), [(8, 4, True), (2, 4, True), (3, 4, False), (5, 4, False), (6, 3, False), (8, 8, True)]
)
def test_steps_are_shared_out_among_blocks(lm: Any, steps: int, block: int, fits: bool) -> None:
    spec = f"masked-diffusion(gen_length=8, steps={steps}, block_length={block})"
    if fits:
        _request(lm, spec, [1])
        return
    with pytest.raises(BadParameter, match=f"{steps} steps do not divide into a canvas of 8 with blocks of {block}"):
        _request(lm, spec, [1])


@pytest.mark.parametrize("sampler", ["autoregressive", "prompt-lookup", "freedave", "hex"])
def test_only_a_rule_with_blocks_can_be_wrapped(sampler: str) -> None:
    with pytest.raises(BadParameter, match=f"sched: {sampler} is not made of a rule and blocks alone"):
        as_method(f"sched(sampler={sampler})")


def test_a_sampler_has_the_canvas_of_who_wraps_it() -> None:
    outer = as_method(
        "sched(sampler='masked-diffusion(rule=entropy)', gen_length=8, block_length=4, steps=4, cache=prefix)"
    )
    inner = outer.inner()  # type: ignore[attr-defined]
    assert isinstance(inner, DiffusionMethod)
    assert inner == as_method("masked-diffusion(rule=entropy, gen_length=8, block_length=4, steps=4, cache=prefix)")
    with pytest.raises(BadParameter, match="give gen_length, steps to sched itself"):
        as_method("sched(sampler='masked-diffusion(gen_length=8, steps=8)')")
