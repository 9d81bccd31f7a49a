"""Optimizers that control is measured on and against, with what can be tuned about them.

Each is made from numbers that may be traced, so that one program serves all learning rates, decays and lengths of run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

Numbers = Mapping[str, Any]
"""Hyperparameters by name, each a number or f32[]: those of `Family.space`, `steps` (the run's length), and `rate_scale` (a
factor of this step's learning rate)."""

# The share of a run in which the learning rate rises, in every family.
WARMUP = 0.1
CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Range:
    """Where to look for a number: evenly in the logarithm of it, or of 1 minus it."""

    low: float
    high: float
    of_rest: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """An optimizer to be tuned.

    Attributes:
      make: the optimizer for some numbers.
      space: where each of its numbers is looked for.
      static: what of `space` shapes the program, and is given as Python numbers; their choices.
      evaluated: the parameters that are evaluated, where those are not the ones that are trained.
    """

    make: Callable[[Numbers], optax.GradientTransformationExtraArgs]
    space: Mapping[str, Range]
    static: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params


def cosine(numbers: Numbers) -> optax.Schedule:
    """Linear warmup over a tenth of the run, then a cosine to 0 at its end."""

    def schedule(count: jax.Array) -> jax.Array:
        done = count / numbers["steps"]
        fall = 0.5 * (1 + jnp.cos(jnp.pi * (done - WARMUP) / (1 - WARMUP)))
        return _scaled(numbers) * jnp.where(done < WARMUP, (count + 1) / (WARMUP * numbers["steps"]), fall)

    return schedule


def constant(numbers: Numbers) -> optax.Schedule:
    """The same warmup, and no decay."""
    return lambda count: _scaled(numbers) * jnp.minimum(1.0, (count + 1) / (WARMUP * numbers["steps"]))


def _scaled(numbers: Numbers) -> Any:
    return numbers["learning_rate"] * numbers["rate_scale"]


def _groups(params: Any) -> Any:
    """"embedding" or "rest" for each parameter."""
    return jax.tree.map_with_path(lambda path, _: "embedding" if path[0].key in ("wte", "wpe") else "rest", params)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def _adamw(numbers: Numbers, schedule: optax.Schedule, *last: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    def group(multiple: Any) -> optax.GradientTransformation:
        return optax.adamw(
            lambda count: multiple * schedule(count),
            b1=numbers["b1"], b2=numbers["b2"], weight_decay=numbers["weight_decay"], mask=_matrices,
        )  # fmt: skip

    both = {"embedding": group(numbers["embedding_multiple"]), "rest": group(1.0)}
    return optax.chain(optax.clip_by_global_norm(numbers.get("clip", CLIP)), optax.partition(both, _groups), *last)


def _plateau(numbers: Numbers) -> optax.GradientTransformationExtraArgs:
    reduce = optax.contrib.reduce_on_plateau(
        factor=numbers["factor"], patience=int(numbers["patience"]), rtol=1e-3, accumulation_size=10
    )
    return _adamw(numbers, constant(numbers), reduce)


def _muon(numbers: Numbers) -> optax.GradientTransformationExtraArgs:
    def hidden(params: Any) -> Any:
        chosen = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda p, group: chosen if p.ndim == 2 and group == "rest" else None, params, _groups(params))

    own = {**numbers, "learning_rate": numbers["adam_learning_rate"]}
    muon = optax.contrib.muon(
        cosine(numbers), beta=numbers["beta"], weight_decay=numbers["weight_decay"], adam_learning_rate=cosine(own),
        adam_b1=numbers["b1"], adam_b2=numbers["b2"], muon_weight_dimension_numbers=hidden,
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(CLIP), muon)


def _schedule_free(numbers: Numbers) -> optax.GradientTransformationExtraArgs:
    # As in optax.contrib.schedule_free_adamw, with a learning rate of embeddings of their own. The wrapper weighs its average by
    # the learning rate, for which any of the two serves: only its course counts.
    def group(multiple: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_rms(decay=numbers["b2"], eps=1e-8, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(numbers["weight_decay"], _matrices),
            optax.scale_by_learning_rate(lambda count: multiple * constant(numbers)(count)),
        )

    both = {"embedding": group(numbers["embedding_multiple"]), "rest": group(1.0)}
    base = optax.chain(optax.clip_by_global_norm(CLIP), optax.partition(both, _groups))
    return optax.contrib.schedule_free(base, constant(numbers), b1=numbers["b1"])


# Initial weights, as multiples of GPT-2's: a small model starts far better from larger ones, and how much better depends
# on the optimizer.
_INITIAL = {"initial_hidden": Range(1.0, 6.0), "initial_embedding": Range(1.0, 10.0)}
_ADAMW = {
    "learning_rate": Range(1.5e-3, 1.2e-2),
    "embedding_multiple": Range(1.5, 12.0),
    "b1": Range(0.6, 0.93, of_rest=True),
    "b2": Range(0.92, 0.998, of_rest=True),
    "weight_decay": Range(0.01, 0.2),
    **_INITIAL,
}
FAMILIES = {
    "adamw": Family(lambda numbers: _adamw(numbers, cosine(numbers)), _ADAMW),
    "muon": Family(
        _muon,
        {
            "learning_rate": Range(8e-3, 8e-2),
            "adam_learning_rate": Range(4e-3, 5e-2),
            "beta": Range(0.75, 0.97, of_rest=True),
            "b1": Range(0.6, 0.93, of_rest=True),
            "b2": Range(0.92, 0.998, of_rest=True),
            "weight_decay": Range(0.01, 0.2),
            **_INITIAL,
        },
    ),
    "schedule-free": Family(
        _schedule_free,
        {**_ADAMW, "b1": Range(0.8, 0.98, of_rest=True), "learning_rate": Range(3e-3, 3e-2)},
        evaluated=optax.contrib.schedule_free_eval_params,
    ),
    "plateau": Family(_plateau, _ADAMW, static={"factor": (0.3, 0.5, 0.7), "patience": (1, 2, 4)}),
}
