"""Healthy training of other kinds."""

import jax
import numpy as np
import pytest
from evidence.corpus import Corpus
from evidence.healthy import TASKS, Healthy, refused
from evidence.search import norm_gate


@pytest.mark.parametrize("name", TASKS)
def test_it_learns(name: str, text: Corpus) -> None:
    task, random = TASKS[name], np.random.default_rng(0)
    batch, key = task.batch(random, text), jax.random.key(1)
    step = jax.jit(task.step)
    params = task.init(jax.random.key(0))
    state, losses = task.optimizer.init(params), []
    for _ in range(12):
        params, state, loss = step(params, state, batch, key)
        losses.append(float(loss))
    # The same batch again and again.
    assert losses[-1] < losses[0], losses


def test_what_a_gate_refuses_is_counted(text: Corpus) -> None:
    def of(gate: dict) -> int:
        return refused(Healthy("regression, 1 row, Adam", 1, gate, steps=40), text)

    assert of(norm_gate(1e6, 5)) == 0
    strict, lenient = of(norm_gate(1.2, 5)), of(norm_gate(1.2, 5, deviations=12.0))
    assert strict > lenient, (strict, lenient)
