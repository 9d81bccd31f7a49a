"""Optimizers whose gradient is hard to find; `python python/tests/optimizers.py` goes through all that optax has."""

import optimizers
import optax
import optax.contrib
import pytest


@pytest.mark.parametrize(
    "function",
    [
        # They keep the last gradient, or what owes nothing to what was kept before it.
        optax.optimistic_gradient_descent,
        optax.optimistic_adam_v2,
        optax.rprop,
        optax.sm3,
        # The gradient is an addend of an average whose coefficient changes, or has noise added to it.
        optax.contrib.momo,
        optax.noisy_sgd,
        optax.contrib.dpsgd,
        # Parameters of its own kind.
        optax.lookahead,
    ],
    ids=lambda function: function.__name__,
)
def test_the_gradient_is_that_of_jax(function):
    verdict = optimizers.judge(optimizers.mlp(), function)
    assert not verdict.refused and not verdict.failed, verdict.text
    assert (verdict.right, verdict.wrong, verdict.absent) == (4, 0, 0), verdict.text


def test_a_flattened_optimizer_is_refused():
    verdict = optimizers.judge(optimizers.mlp(), optax.flatten)
    assert verdict.refused and "coupled" in verdict.text
