"""The experiment of insertion language models, on few graphs."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import insertion_language_models as experiment

SETTINGS = experiment.Settings(graphs=3, sizes=("arms-of-3",))


def test_gaps_are_of_every_length_and_within_the_path():
    settings = experiment.Settings(graphs=60)
    gaps = experiment.gaps_of(settings)
    assert {gap.end - gap.start for gap in gaps} == {1, 2, 3, 4}
    assert {gap.start for gap in gaps} == {0, 1, 2, 3}
    assert gaps == experiment.gaps_of(settings)
    assert gaps != experiment.gaps_of(experiment.Settings(graphs=60, seed=2))


def test_the_spread_is_the_standard_deviation():
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0]])
    lengths = np.array([1.0, 2.0, 4.0, 5.0])
    found = experiment._spread(weights, lengths, lengths)
    assert found[0] == pytest.approx(np.std(lengths))
    assert found[1] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["stars", "holes", "held_out"])
def test_each_arm_tells_what_the_figures_ask_for(name):
    study = experiment.EXPERIMENT.studies[name](SETTINGS)
    assert len(study.items) == 3
    wanted = {figure.of for figure in study.figures if figure.of}
    for arm in study.arms:
        values = arm.measure(study.items[0])
        assert wanted <= set(values)
    if name == "holes":
        assert values["given kept"] == 1.0
    if name == "held_out":
        assert values["above ideal"] == pytest.approx(values["cost"] - values["ideal"])
