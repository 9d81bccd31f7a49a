"""What goes wrong in a run on purpose: batches, learning rates."""

import dataclasses
from typing import Literal

import numpy as np

Kind = Literal["random", "repeated", "shuffled", "large"]
KINDS: tuple[Kind, ...] = ("random", "repeated", "shuffled", "large")
"""What a corrupted batch is: bytes at random; one byte all over; its targets in another order; a loss 100 times as large."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """A run's faults.

    Attributes:
      rate: share of batches that are corrupted.
      kinds: the kinds of corruption that are drawn from.
      spike: what the learning rate is multiplied by, for a twentieth of the run after two fifths of it.
    """

    rate: float = 0.0
    kinds: tuple[Kind, ...] = KINDS
    spike: float = 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step is given: int32[rows, context] twice, factors of loss and learning rate, and whether this is a fault."""

    inputs: np.ndarray
    targets: np.ndarray
    loss_scale: float
    rate_scale: float
    bad: bool


def draw(text: np.ndarray, rows: int, context: int, seed: int, step: int, steps: int, faults: Faults | None) -> Batch:
    """The batch of a step: the same for every optimizer, policy and length of run with this seed."""
    random = np.random.default_rng([seed, step])
    starts = random.integers(0, text.size - context - 1, rows)
    tokens = text[starts[:, None] + np.arange(context + 1)].astype(np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], 1.0, 1.0, False)
    if faults is None:
        return batch
    # A generator of their own, so that all other batches are those of a run without faults.
    random = np.random.default_rng([seed, step, 1])
    if random.random() < faults.rate:
        batch = _corrupted(batch, faults.kinds[random.integers(len(faults.kinds))], random)
    if faults.spike != 1.0 and 0.4 * steps <= step < 0.45 * steps:
        batch = dataclasses.replace(batch, rate_scale=faults.spike)
    return batch


def _corrupted(batch: Batch, kind: Kind, random: np.random.Generator) -> Batch:
    if kind == "random":
        tokens = random.integers(0, 256, (batch.inputs.shape[0], batch.inputs.shape[1] + 1), np.int32)
    elif kind == "repeated":
        tokens = np.full((batch.inputs.shape[0], batch.inputs.shape[1] + 1), random.integers(256), np.int32)
    elif kind == "shuffled":
        targets = random.permutation(batch.targets.reshape(-1)).reshape(batch.targets.shape)
        return dataclasses.replace(batch, targets=targets, bad=True)
    else:
        return dataclasses.replace(batch, loss_scale=100.0, bad=True)
    return dataclasses.replace(batch, inputs=tokens[:, :-1], targets=tokens[:, 1:], bad=True)
