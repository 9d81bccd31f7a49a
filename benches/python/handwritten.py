"""The default policy's control, written by hand in JAX for one training script: what `entropic inject` is compared with.

Like the injected one it takes the entropy and the norm of every gradient, smooths over three accepted steps, refuses an
update whose gradient is not finite or whose norm is far above its running mean, by more than is usual, re-arms after a long
pause, and reports. Left out is what decides nothing under that policy: the target that entropies are compared with.

`python handwritten.py --model gpt-nano --out DIR` writes the controlled step as a bundle.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from entropic_export import export_bundle
from entropic_export.bundles import gpt
from jax.scipy.special import entr

CONFIGS = {"gpt-nano": gpt.NANO, "gpt2-small": gpt.GPT2_SMALL, "gpt2-small-clip": gpt.GPT2_SMALL_CLIP}


@dataclasses.dataclass(frozen=True)
class Gate:
    """The numbers of the default policy that decide something; their names and meanings are those of docs/policy.md."""

    smoothing: int = 3
    multiple: float = 2.0
    deviations: float = 12.0
    half_life: float = 20.0
    warmup: int = 20
    max_pause: int = 50


class Control(NamedTuple):
    """What is carried from step to step; vectors have an element per tensor and a last one for the whole gradient."""

    window: jax.Array
    norm_mean: jax.Array
    norm_weight: jax.Array
    deviation: jax.Array
    deviation_weight: jax.Array
    paused_norms: jax.Array
    paused: jax.Array
    accepted: jax.Array
    non_finite: jax.Array
    refused_norm: jax.Array
    rearmed: jax.Array


class Telemetry(NamedTuple):
    """What a step reports; -1 stands for an entropy or a threshold that is not there."""

    applied: jax.Array
    entropy: jax.Array
    smoothed: jax.Array
    norm: jax.Array
    norm_mean: jax.Array
    threshold: jax.Array
    accepted: jax.Array
    non_finite: jax.Array
    refused_norm: jax.Array
    rearmed: jax.Array


def start(params: Any, gate: Gate) -> Control:
    """The state before the first step."""
    width = len(jax.tree.leaves(params)) + 1
    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return Control(jnp.full((gate.smoothing, width), -1.0), zero, zero, zero, zero, zero, none, none, none, none, none)


def measure(grads: Any) -> tuple[jax.Array, jax.Array]:
    """Norm and normalised entropy of each gradient, and of all of them as one."""
    leaves = [g.astype(jnp.float32) for g in jax.tree.leaves(grads)]
    energy = jnp.stack([jnp.sum(jnp.square(g)) for g in leaves])
    nats = jnp.stack([jnp.sum(entr(jnp.square(g) / e)) for g, e in zip(leaves, energy, strict=True)])
    total = energy.sum()
    share = energy / total
    whole = jnp.sum(jnp.where(share > 0, share * nats, 0.0) + entr(share))
    sizes = [g.size for g in leaves]
    most = jnp.array([math.log(max(n, 2)) for n in [*sizes, sum(sizes)]])
    energy = jnp.append(energy, total)
    entropy = jnp.append(nats, whole) / most
    return jnp.sqrt(energy), jnp.where((energy > 0) & jnp.isfinite(energy), entropy, -1.0)


def decide(control: Control, norm: jax.Array, entropy: jax.Array, gate: Gate) -> tuple[jax.Array, Control, Telemetry]:
    """Whether this step is applied, what is carried on, and what is reported."""
    c, size = control, norm[-1]
    finite = jnp.isfinite(size)
    armed = (c.accepted >= gate.warmup) & (c.norm_weight > 0)
    limit = jnp.maximum(gate.multiple * c.norm_mean, c.norm_mean + gate.deviations * c.deviation)
    exceeded = finite & armed & (size > limit)
    applied = finite & ~exceeded

    window = jnp.where(applied & (entropy >= 0), jnp.concatenate([entropy[None], c.window[:-1]]), c.window)
    present = window >= 0
    count = present.sum(0)
    smoothed = jnp.where(count > 0, jnp.where(present, window, 0.0).sum(0) / jnp.maximum(count, 1), -1.0)

    rate = 1 - 2 ** (-1 / gate.half_life)
    follows = applied & (c.norm_weight > 0)
    deviation_weight = jnp.where(follows, c.deviation_weight + rate * (1 - c.deviation_weight), c.deviation_weight)
    distance = jnp.abs(size - c.norm_mean) - c.deviation
    deviation = jnp.where(follows, c.deviation + rate / deviation_weight * distance, c.deviation)
    weight = jnp.where(applied, c.norm_weight + rate * (1 - c.norm_weight), c.norm_weight)
    mean = jnp.where(applied, c.norm_mean + rate / weight * (size - c.norm_mean), c.norm_mean)
    paused = c.paused + exceeded
    paused_norms = c.paused_norms + jnp.where(exceeded, size, 0.0)
    rearm = exceeded & (paused >= gate.max_pause)
    mean = jnp.where(rearm, paused_norms / jnp.maximum(paused, 1), mean)
    over = applied | rearm
    control = Control(
        window, mean, weight, deviation, deviation_weight, jnp.where(over, 0.0, paused_norms), jnp.where(over, 0, paused),
        c.accepted + applied, c.non_finite + ~finite, c.refused_norm + exceeded, c.rearmed + rearm,
    )  # fmt: skip
    telemetry = Telemetry(
        applied, entropy, smoothed, norm, mean, jnp.where(armed, limit, -1.0),
        control.accepted, control.non_finite, control.refused_norm, control.rearmed,
    )  # fmt: skip
    return applied, control, telemetry


def hold(applied: jax.Array, new: Any, old: Any) -> Any:
    """The new state where the step is applied, else the old one; the schedule goes on all the same."""
    advances = lambda state: isinstance(state, optax.ScaleByScheduleState)  # noqa: E731

    def choose(new: Any, old: Any) -> Any:
        return new if advances(new) else jnp.where(applied, new, old)

    return jax.tree.map(choose, new, old, is_leaf=advances)


def controlled(loss: Callable[..., Any], tx: optax.GradientTransformation, gate: Gate) -> Callable[..., Any]:
    """`step(params, opt_state, control, batch) -> (params, opt_state, control, loss, telemetry)`."""

    def step(params: Any, opt_state: Any, control: Control, batch: Any):
        value, grads = jax.value_and_grad(loss)(params, batch)
        applied, control, telemetry = decide(control, *measure(grads), gate)
        updates, new_opt_state = tx.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, updates)
        return hold(applied, new_params, params), hold(applied, new_opt_state, opt_state), control, value, telemetry

    return step


def export(config: gpt.Config, name: str, path: pathlib.Path, gate: Gate | None = None) -> None:
    """Writes the controlled step of a model as a bundle."""
    gate = gate or Gate()
    init, _, _ = gpt.training(config)

    def controlled_init(seed: jax.Array):
        params, opt_state = init(seed)
        return params, opt_state, start(params, gate)

    step = controlled(functools.partial(gpt.loss, config), gpt.optimizer(config), gate)
    batch = jax.ShapeDtypeStruct((config.batch, config.context + 1), jnp.int32)
    export_bundle(
        step, controlled_init, batch, path, name=f"{name}-handwritten", loss="result[3]", data=config.data,
        vocab=config.vocab, roles={"control": "state"},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CONFIGS, default="gpt-nano")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args(argv)
    export(CONFIGS[arguments.model], arguments.model, arguments.out)


if __name__ == "__main__":
    main()
