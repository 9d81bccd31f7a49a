"""Training in JAX: plain, under control on the host in two ways, and as a whole loop with data.

Each contender is `run(steps) -> seconds`; it keeps its state from call to call and waits for its last step.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import optax
from entropic_export.bundles import gpt

Run = Callable[[int], float]

BATCHES = 16
"""Batches that lie ready on the device for contenders that time the step alone."""


def windows(config: gpt.Config, text: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Random windows of the text, for ever."""
    rng = np.random.default_rng(seed)
    offsets = np.arange(config.context + 1)
    while True:
        starts = rng.integers(0, len(text) - len(offsets), config.batch)
        yield text[starts[:, None] + offsets].astype(np.int32)


class Gate:
    """The decision of the default policy, taken on the host."""

    def __init__(self) -> None:
        self.gate = handwritten.Gate()
        self.mean, self.weight, self.accepted = 0.0, 0.0, 0
        self.window: list[list[float]] = []

    def accepts(self, entropies: list[float], norm: float) -> bool:
        """Whether the step is to be applied; remembers it if so."""
        armed = self.accepted >= self.gate.warmup
        if not math.isfinite(norm) or (armed and norm > self.gate.multiple * self.mean):
            return False
        rate = 1 - 2 ** (-1 / self.gate.half_life)
        self.weight += rate * (1 - self.weight)
        self.mean += rate / self.weight * (norm - self.mean)
        self.accepted += 1
        self.window = [*self.window[1 - self.gate.smoothing :], entropies]
        return True


def contenders(config: gpt.Config, text: np.ndarray) -> dict[str, Run]:
    """All of them, by name."""
    batches = [jnp.asarray(b) for _, b in zip(range(BATCHES), windows(config, text, 0), strict=False)]
    return {
        "jax": plain(config, batches),
        "jax-naive": naive(config, batches),
        "jax-packed": packed(config, batches),
        "jax-loop": loop(config, windows(config, text, 1)),
    }


def _timed(start: Any, advance: Callable[[Any, int], Any]) -> Run:
    """Times `advance(state, number of the step) -> state`."""
    state, done = start, 0

    def run(steps: int) -> float:
        nonlocal state, done
        begin = time.perf_counter()
        for _ in range(steps):
            state = advance(state, done)
            done += 1
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    return run


def plain(config: gpt.Config, batches: list[jax.Array]) -> Run:
    """The jitted step with donation, nothing read."""
    init, step, _ = gpt.training(config)
    step = jax.jit(step, donate_argnums=(0, 1))
    return _timed(jax.jit(init)(0), lambda s, n: step(*s, batches[n % BATCHES])[:2])


def naive(config: gpt.Config, batches: list[jax.Array]) -> Run:
    """The entropy of each tensor by a jitted function, fetched one by one; the host decides before the update."""
    init, _, _ = gpt.training(config)
    tx, gate = gpt.optimizer(config), Gate()
    gradients = jax.jit(jax.value_and_grad(functools.partial(gpt.loss, config)))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def entropy(g: jax.Array) -> jax.Array:
        p = jnp.square(g) / jnp.sum(jnp.square(g))
        return jnp.sum(jax.scipy.special.entr(p)) / math.log(max(g.size, 2))

    norm = jax.jit(optax.global_norm)

    def advance(state: Any, number: int) -> Any:
        _, grads = gradients(state[0], batches[number % BATCHES])
        entropies = [float(entropy(g)) for g in jax.tree.leaves(grads)]
        return update(*state, grads) if gate.accepts(entropies, float(norm(grads))) else state

    return _timed(jax.jit(init)(0), advance)


def packed(config: gpt.Config, batches: list[jax.Array]) -> Run:
    """All statistics in one array that comes to the host while the next step runs; a decision holds one step late.

    What the host decides goes in as a scale of the next update, the cheapest way in: nothing is selected or kept.
    """
    init, _, _ = gpt.training(config)
    tx, gate = gpt.optimizer(config), Gate()
    gradients = jax.value_and_grad(functools.partial(gpt.loss, config))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, tokens: jax.Array, scale: float) -> tuple[Any, Any, jax.Array]:
        _, grads = gradients(params, tokens)
        statistics = jnp.concatenate(handwritten.measure(grads))
        updates, opt_state = tx.update(grads, opt_state, params)
        updates = jax.tree.map(lambda u: scale * u, updates)
        return optax.apply_updates(params, updates), opt_state, statistics

    def advance(state: Any, number: int) -> Any:
        params, opt_state, scale, before = state
        params, opt_state, statistics = step(params, opt_state, batches[number % BATCHES], scale)
        statistics.copy_to_host_async()
        if before is not None:
            norms, entropies = np.split(np.asarray(before), 2)
            scale = 1.0 if gate.accepts(entropies.tolist(), float(norms[-1])) else 0.0
        return params, opt_state, scale, statistics

    return _timed((*jax.jit(init)(0), 1.0, None), advance)


def loop(config: gpt.Config, data: Iterator[np.ndarray]) -> Run:
    """A training loop: data from numpy in each step, the loss read when two more steps are under way."""
    init, step, _ = gpt.training(config)
    step = jax.jit(step, donate_argnums=(0, 1))
    losses: list[jax.Array] = []

    def advance(state: Any, number: int) -> Any:
        params, opt_state, loss = step(*state, next(data))
        losses.append(loss)
        if len(losses) > 2:
            float(losses[-3])
        return params, opt_state

    return _timed(jax.jit(init)(0), advance)
