"""Faults hit the batches that they are meant for and leave all others alone."""

import numpy as np
import pytest
from evidence.corpus import Corpus
from evidence.faults import KINDS, Batch, Faults, Kind, draw


def batches(text: Corpus, faults: Faults | None, steps: int = 200) -> list[Batch]:
    return [draw(text.train, 4, 16, 1, step, steps, faults) for step in range(steps)]


def same(one: Batch, other: Batch) -> bool:
    return bool((one.inputs == other.inputs).all() and (one.targets == other.targets).all()) and one.loss_scale == other.loss_scale


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_share_of_batches_is_corrupted(text: Corpus, kind: Kind) -> None:
    clean, faulty = batches(text, None), batches(text, Faults(rate=0.25, kinds=(kind,)))
    assert 30 < sum(batch.bad for batch in faulty) < 70
    for one, other in zip(clean, faulty, strict=True):
        assert same(one, other) != other.bad
        assert not one.bad and one.rate_scale == other.rate_scale == 1.0


def test_kinds_do_what_they_are_called(text: Corpus) -> None:
    of = {kind: draw(text.train, 4, 16, 1, 0, 9, Faults(rate=1.0, kinds=(kind,))) for kind in KINDS}
    clean = draw(text.train, 4, 16, 1, 0, 9, None)
    assert len(np.unique(of["repeated"].inputs)) == 1
    assert len(np.unique(of["random"].inputs)) > 40
    assert (of["shuffled"].inputs == clean.inputs).all()
    assert sorted(of["shuffled"].targets.ravel()) == sorted(clean.targets.ravel())
    assert of["large"].loss_scale == 100.0


def test_the_learning_rate_jumps_for_a_twentieth_of_the_run(text: Corpus) -> None:
    scales = [batch.rate_scale for batch in batches(text, Faults(spike=30.0))]
    assert [step for step, scale in enumerate(scales) if scale != 1.0] == list(range(80, 90))


def test_batches_do_not_depend_on_the_length_of_a_run(text: Corpus) -> None:
    short, long = batches(text, Faults(rate=0.1), 50), batches(text, Faults(rate=0.1), 200)
    assert all(same(one, other) for one, other in zip(short, long, strict=False))
