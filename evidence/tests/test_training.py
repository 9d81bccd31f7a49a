"""Runs do what they say."""

import dataclasses
import math

import pytest
from conftest import SMALL, small_run
from evidence.corpus import Corpus
from evidence.faults import Faults
from evidence.optimizers import FAMILIES
from evidence.search import at, dimensions
from evidence.training import train


@pytest.mark.parametrize("family", FAMILIES)
def test_every_optimizer_learns(text: Corpus, family: str) -> None:
    numbers = at(FAMILIES[family], [0.5] * dimensions(FAMILIES[family]))
    result = train(small_run(family=family, numbers=numbers, steps=40), text)
    assert result.test < math.log(256) - 0.5
    assert result.curve[0][1] > result.curve[-1][1]


def test_a_policy_that_only_watches_changes_no_loss(text: Corpus) -> None:
    plain, watched = train(small_run(), text), train(small_run(policy="monitor"), text)
    assert plain.test == watched.test and plain.curve == watched.curve


def test_policies_that_differ_in_numbers_act_differently(text: Corpus) -> None:
    # The second one is not compiled again; were its numbers ignored, it would refuse nothing either.
    lenient = train(small_run(policy={"gate": {"norm": {"warmup": 1, "multiple": 1000.0}}}), text)
    strict = train(small_run(policy={"gate": {"norm": {"warmup": 1, "multiple": 1.0001}}}), text)
    assert sum(lenient.refused.values()) == 0 < strict.refused["refused_norm"]


def test_an_oracle_leaves_corrupted_batches_out(text: Corpus) -> None:
    faults = Faults(rate=1.0, kinds=("random",))
    untouched = train(small_run(faults=faults, guard="oracle"), text)
    assert untouched.bad == 6
    assert len({loss for _, loss in untouched.curve}) == 1
    assert len({loss for _, loss in train(small_run(faults=faults), text).curve}) > 1


def test_an_overflow_is_caught_by_the_gate_and_by_optax(text: Corpus) -> None:
    half = dataclasses.replace(SMALL, compute="float16", loss_scale=2.0**30)
    assert train(small_run(setting=half), text).test == math.inf
    assert math.isfinite(train(small_run(setting=half, guard="finite"), text).test)
    gated = train(small_run(setting=half, policy="default"), text)
    assert math.isfinite(gated.test) and gated.refused["non_finite"] == 6
