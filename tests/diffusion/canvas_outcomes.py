"""What a canvas decoder did, and two laws that several methods are held to."""

from __future__ import annotations

import pytest

from decodery.engine.declared import parse_spec
from decodery.engine.events import Unmasked
from decodery.engine.registry import find
from decodery.engine.registry import method as as_method
from decodery.evaluation import diffusion_check
from decodery.evaluation.check import check_method
from decodery.testing import toy_diffusion_model

PROMPT = [3, 1, 4, 1, 5]


def acting(spec):
    """The method of a spec, without what would be refused since the method has it not, or it does nothing beside the rest."""
    name, values = parse_spec(spec)
    known = {item.name for item in find(name).parameters()}
    return find(name)().varied(**{key: value for key, value in values.items() if key in known})


def decoded(reply):
    """What stands where, since which step, and at what cost."""
    tokens = {}
    for event in reply.events:
        if isinstance(event, Unmasked):
            tokens.update(zip(event.offsets, event.tokens, strict=True))
    return tokens, reply.stats.step_of, reply.stats.forwards


def assert_alone_as_in_a_batch(spec, temperature):
    """A request decodes the same whatever shares its pass."""
    lm = toy_diffusion_model()
    prompts = [PROMPT, [2, 7], [9, 9, 9, 1]]
    together = lm.generate(prompts, spec, temperature=temperature, seed=[1, 2, 3])
    alone = [lm.generate(p, spec, temperature=temperature, seed=s) for p, s in zip(prompts, (1, 2, 3), strict=True)]
    assert [decoded(reply) for reply in together] == [decoded(reply) for reply in alone]


def assert_claims_hold(lm, spec):
    """What a method says of itself is so, decided by a few prompts; it says nothing of a method that is the other one."""
    claims = as_method(spec).claims()
    assert claims
    for claim in claims:
        assert claim.method != claim.same_as
        for start in range(3):
            ours, other = (
                lm.generate([*PROMPT, start], method, temperature=claim.temperature, seed=start)
                for method in (claim.method, claim.same_as)
            )
            # A second network's forwards are counted, too.
            assert decoded(ours)[:2] == decoded(other)[:2]
            assert ours.stats.models[lm.network.name].forwards == other.stats.models[lm.network.name].forwards


def assert_check_decides_the_claims(spec):
    """`decodery check` finds what the method says of itself to be so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion_check, "ORACLES", ((2, 2, 0),))  # no law is promised, and that of more takes long
        report = check_method(toy_diffusion_model(), spec, prompts=2)
    assert report.passed
    claims = [part for part in report.parts if part.name.startswith("claim")]
    assert len(claims) >= 2
    assert all(part.passed for part in claims)
