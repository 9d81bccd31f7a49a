"""Training of other kinds than a language model's, with nothing wrong: what gates refuse there is refused for nothing."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
from entropic_export.bundles import gpt

from .corpus import Corpus
from .policies import Policy, in_force

Arrays = Any
"""A tree of arrays."""
STEPS = 400


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to train.

    Attributes:
      init: parameters for a key.
      loss: of parameters, a batch and a key for what is random in it.
      batch: drawn by a generator, from a text.
      optimizer: as a user would take it.
    """

    init: Callable[[jax.Array], Arrays]
    loss: Callable[[Arrays, Arrays, jax.Array], jax.Array]
    batch: Callable[[np.random.Generator, Corpus], Arrays]
    optimizer: optax.GradientTransformation

    def step(self, params: Arrays, state: Arrays, batch: Arrays, key: jax.Array) -> tuple[Arrays, Arrays, jax.Array]:
        """A train step: next parameters, the optimizer's next state, and the loss."""
        value, grads = jax.value_and_grad(self.loss)(params, batch, key)
        updates, state = self.optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value


@dataclasses.dataclass(frozen=True)
class Healthy:
    """A run of one of `TASKS` under a policy.

    Attributes:
      task: its name.
      seed: of parameters, batches and what is random in the loss.
      policy: the controller's; its numbers alone may differ from the default policy.
    """

    task: str
    seed: int
    policy: Policy
    steps: int = STEPS

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "policy": in_force(self.policy)}


def refused(run: Healthy, text: Corpus) -> int:
    """How many steps of a run were not applied."""
    task, (step, ctl) = TASKS[run.task], _controlled(run.task)
    ctl = step.retune(jax.tree.map(jnp.copy, ctl), run.policy)
    params = task.init(jax.random.key(run.seed))
    state = (params, task.optimizer.init(params))
    random, applied = np.random.default_rng(run.seed), 0
    for number in range(run.steps):
        key = jax.random.fold_in(jax.random.key(run.seed), number)
        (*state, _), ctl, telemetry = step(ctl, *state, task.batch(random, text), key)
        applied += bool(telemetry["applied"])
    return run.steps - applied


@functools.cache
def _controlled(name: str) -> tuple[entropic.ControlledStep, entropic.Controller]:
    task = TASKS[name]
    params = task.init(jax.random.key(0))
    # Any text of this length has the shapes of a batch.
    text = Corpus(*(np.zeros(4096, np.uint8) for _ in range(3)), digest="")
    args = (params, task.optimizer.init(params), task.batch(np.random.default_rng(0), text), jax.random.key(0))
    return entropic.control(jax.jit(task.step, donate_argnums=(0, 1)), args, "default")


# Models.


def _matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
    return jax.random.normal(key, (rows, columns)) / rows**0.5


def _language(rows: int, optimizer: optax.GradientTransformation) -> Task:
    config = dataclasses.replace(gpt.NANO, layers=2, width=64, heads=2, context=64, batch=rows)
    return Task(
        lambda key: gpt.make_params(config, key), lambda params, batch, key: gpt.loss(config, params, batch),
        lambda random, text: _rows(random, text, rows, 64), optimizer,
    )  # fmt: skip


def _rows(random: np.random.Generator, text: Corpus, rows: int, context: int) -> np.ndarray:
    starts = random.integers(0, text.train.size - context - 1, rows)
    return text.train[starts[:, None] + np.arange(context + 1)].astype(np.int32)


def _recurrent(rows: int, optimizer: optax.GradientTransformation) -> Task:
    def init(key: jax.Array) -> Arrays:
        keys = jax.random.split(key, 4)
        return {"embedding": 3 * _matrix(keys[0], 256, 32), "in": _matrix(keys[1], 32, 192), "own": _matrix(keys[2], 64, 192), "out": _matrix(keys[3], 64, 256)}

    def loss(params: Arrays, tokens: jax.Array, key: jax.Array) -> jax.Array:
        del key

        def cell(hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            ours, theirs = x @ params["in"], hidden @ params["own"]
            reset, update = jnp.split(jax.nn.sigmoid(ours[:, :128] + theirs[:, :128]), 2, -1)
            new = jnp.tanh(ours[:, 128:] + reset * theirs[:, 128:])
            hidden = (1 - update) * new + update * hidden
            return hidden, hidden

        x = params["embedding"][tokens[:, :-1]].swapaxes(0, 1)
        _, hidden = jax.lax.scan(cell, jnp.zeros((rows, 64)), x)
        logits = hidden.swapaxes(0, 1) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return Task(init, loss, lambda random, text: _rows(random, text, rows, 48), optimizer)


SIDE, CLASSES = 16, 10


def _gratings(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[count, SIDE, SIDE, 1] of waves in noise, and s32[count]: which way each runs."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    labels = random.integers(0, CLASSES, count)
    of_each = lambda values: values[:, None, None]
    angle = of_each(np.pi * labels / CLASSES + random.normal(0, 0.08, count))
    phase, frequency = of_each(random.uniform(0, 2 * np.pi, count)), of_each(random.uniform(8, 20, count))
    waves = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    images = waves + random.normal(0, 0.7, waves.shape)
    return images[..., None].astype(np.float32), labels.astype(np.int32)


def _images(count: int, head: float, optimizer: optax.GradientTransformation) -> Task:
    def init(key: jax.Array) -> Arrays:
        keys = jax.random.split(key, 4)
        kernel = lambda key, *shape: jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5
        kernels = [kernel(keys[0], 3, 3, 1, 16), kernel(keys[1], 3, 3, 16, 32), kernel(keys[2], 3, 3, 32, 32)]
        return {"kernels": kernels, "head": head * _matrix(keys[3], 32, CLASSES), "bias": jnp.zeros(CLASSES)}

    def loss(params: Arrays, batch: Arrays, key: jax.Array) -> jax.Array:
        del key
        x, labels = batch
        for kernel, stride in zip(params["kernels"], (1, 2, 2), strict=True):
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dims))
        return optax.softmax_cross_entropy_with_integer_labels(x.mean((1, 2)) @ params["head"] + params["bias"], labels).mean()

    return Task(init, loss, lambda random, text: _gratings(random, count), optimizer)


def _regression(rows: int, optimizer: optax.GradientTransformation) -> Task:
    def init(key: jax.Array) -> Arrays:
        keys = jax.random.split(key, 3)
        return {"in": _matrix(keys[0], 8, 64), "bias": jnp.zeros(64), "hidden": _matrix(keys[1], 64, 64), "out": _matrix(keys[2], 64, 1)}

    def loss(params: Arrays, batch: Arrays, key: jax.Array) -> jax.Array:
        del key
        x, y = batch
        hidden = jnp.tanh(jnp.tanh(x @ params["in"] + params["bias"]) @ params["hidden"])
        return jnp.mean((hidden @ params["out"] - y) ** 2)

    def batch(random: np.random.Generator, text: Corpus) -> Arrays:
        del text
        x = random.normal(size=(rows, 8)).astype(np.float32)
        y = np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.1 * random.normal(size=(rows, 1))
        return x, y.astype(np.float32)

    return Task(init, loss, batch, optimizer)


def _autoencoder(count: int, optimizer: optax.GradientTransformation) -> Task:
    def init(key: jax.Array) -> Arrays:
        keys = jax.random.split(key, 4)
        pixels = SIDE * SIDE
        return {"in": _matrix(keys[0], pixels, 128), "code": _matrix(keys[1], 128, 32), "decode": _matrix(keys[2], 16, 128), "out": _matrix(keys[3], 128, pixels)}

    def loss(params: Arrays, images: jax.Array, key: jax.Array) -> jax.Array:
        x = images.reshape(count, -1)
        mean, log_variance = jnp.split(jax.nn.relu(x @ params["in"]) @ params["code"], 2, -1)
        code = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        error = jnp.sum((jax.nn.relu(code @ params["decode"]) @ params["out"] - x) ** 2, -1)
        return jnp.mean(error + 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, -1))

    return Task(init, loss, lambda random, text: _gratings(random, count)[0], optimizer)


def _diffusion(count: int, optimizer: optax.GradientTransformation) -> Task:
    def init(key: jax.Array) -> Arrays:
        keys = jax.random.split(key)
        pixels = SIDE * SIDE
        return {"in": _matrix(keys[0], pixels + 1, 256), "hidden": _matrix(keys[1], 256, 256), "out": jnp.zeros((256, pixels))}

    def loss(params: Arrays, images: jax.Array, key: jax.Array) -> jax.Array:
        x = images.reshape(count, -1)
        time, noise = jax.random.uniform(key, (count, 1)), jax.random.normal(jax.random.fold_in(key, 1), x.shape)
        noisy = jnp.sqrt(1 - time) * x + jnp.sqrt(time) * noise
        hidden = jax.nn.silu(jnp.concatenate([noisy, time], -1) @ params["in"])
        hidden = hidden + jax.nn.silu(hidden @ params["hidden"])
        return jnp.mean((hidden @ params["out"] - noise) ** 2)

    return Task(init, loss, lambda random, text: _gratings(random, count)[0], optimizer)


def _bandit(samples: int, optimizer: optax.GradientTransformation) -> Task:
    rewards = np.random.default_rng(0).normal(size=(8, 6))

    def init(key: jax.Array) -> Arrays:
        return {"in": _matrix(key, 8, 64), "out": jnp.zeros((64, 6))}

    def loss(params: Arrays, batch: Arrays, key: jax.Array) -> jax.Array:
        x, reward = batch
        log_policy = jax.nn.log_softmax(jnp.tanh(x @ params["in"]) @ params["out"])
        action = jax.random.categorical(key, log_policy)[:, None]
        take = lambda of: jnp.take_along_axis(of, action, 1)
        return -jnp.mean(take(reward) * take(log_policy))

    def batch(random: np.random.Generator, text: Corpus) -> Arrays:
        del text
        x = random.normal(size=(samples, 8)).astype(np.float32)
        return x, (x @ rewards + random.normal(size=(samples, 6))).astype(np.float32)

    return Task(init, loss, batch, optimizer)


def _clipped_adamw() -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, STEPS)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


_SGD = optax.sgd(0.05, momentum=0.9)
TASKS: Mapping[str, Task] = {
    "GPT, 1 row, AdamW": _language(1, _clipped_adamw()),
    "GPT, 16 rows, AdamW": _language(16, _clipped_adamw()),
    "GPT, 8 rows, SGD": _language(8, optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 50, STEPS), momentum=0.9)),
    "GRU, 8 rows, Adam": _recurrent(8, optax.adam(3e-3)),
    "convolutions, 4 images, SGD": _images(4, 1.0, _SGD),
    "convolutions, 64 images, SGD, head of zeros": _images(64, 0.0, _SGD),
    "convolutions, 32 images, Adam": _images(32, 1.0, optax.adam(1e-3)),
    "regression, 1 row, Adam": _regression(1, optax.adam(1e-3)),
    "regression, 64 rows, Adam": _regression(64, optax.adam(1e-3)),
    "variational autoencoder, 32 images, Adam": _autoencoder(32, optax.adam(1e-3)),
    "diffusion, 32 images, Adam": _diffusion(32, optax.adam(1e-3)),
    "policy gradient, 16 samples, Adam": _bandit(16, optax.adam(3e-3)),
}
"""What is trained, by name."""
