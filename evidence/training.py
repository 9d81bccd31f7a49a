"""One training run: what it is, and doing it."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
from entropic_export.bundles import gpt

from .corpus import Corpus, windows
from .faults import Batch, Faults, draw
from .optimizers import FAMILIES, Numbers
from .policies import Policy, in_force

Guard = Literal["none", "finite", "oracle"]
"""What stands beside a policy, or instead of one: `optax.apply_if_finite`, or an oracle that knows which batches are corrupted
and leaves parameters and moments alone in their steps."""

# Windows of validation text and of test text that a loss is the mean of, and those of points of a learning curve.
VALIDATED, TESTED = 1024, 2048
CURVE = 256
CURVE_POINTS = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and its batches.

    Attributes:
      layers, width, heads: of the GPT in `entropic_export.bundles.gpt`, byte for byte, head and embedding tied.
      context: bytes of a row.
      rows: rows of a step.
      compute: dtype of its products.
      loss_scale: a constant that the loss is multiplied and gradients are divided by.
    """

    layers: int = 3
    width: int = 96
    heads: int = 3
    context: int = 64
    rows: int = 16
    compute: str = "float32"
    loss_scale: float = 1.0

    @property
    def config(self) -> gpt.Config:
        """The model's configuration."""
        return dataclasses.replace(
            gpt.NANO, layers=self.layers, width=self.width, heads=self.heads, context=self.context, batch=self.rows, compute=self.compute
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides a run's result, besides the text.

    Attributes:
      setting: the model.
      family: a key of `optimizers.FAMILIES`.
      numbers: its hyperparameters.
      steps: its length; schedules end there.
      seed: of initial parameters, batches and faults.
      policy: what controls it, or None for the plain step.
      faults: what goes wrong, if anything does.
      guard: what stands beside the policy.
    """

    setting: Setting
    family: str
    numbers: Mapping[str, float]
    steps: int
    seed: int
    policy: Policy | None = None
    faults: Faults | None = None
    guard: Guard = "none"

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "policy": in_force(self.policy)}


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
      test: nats per byte at its end on text that no choice was made on; infinite where the run diverged.
      validation: the same on text that choices are made on.
      curve: steps done, and nats per byte on a part of the validation text.
      step_ms: milliseconds of a step, everything included, as it happened to be while other runs went on.
      bad: corrupted batches.
      refused: batches that were not applied, by the controller's reasons.
      caught: how many of these were corrupted.
    """

    test: float
    validation: float
    curve: list[tuple[int, float]]
    step_ms: float
    bad: int = 0
    refused: Mapping[str, int] = dataclasses.field(default_factory=dict)
    caught: int = 0


def train(run: Run, text: Corpus) -> Result:
    """Does a run.

    Raises:
      entropic.Error: the policy does not fit the step.
    """
    program = _program(run.setting, run.family, static_of(run.family, run.numbers), run.guard)
    given = functools.partial(given_of, run.family, run.numbers, run.steps)
    params, opt_state = program.start(run.seed, given(1.0))
    controlled, ctl = (None, None) if run.policy is None else program.controlled(run.policy, given(1.0))
    marks = {round(run.steps * point / CURVE_POINTS) for point in range(1, CURVE_POINTS)}
    curve, applied, bad = [], [], []
    telemetry: Mapping[str, jax.Array] = {}
    seconds = 0.0
    for step in range(run.steps):
        batch = draw(text.train, run.setting.rows, run.setting.context, run.seed, step, run.steps, run.faults)
        start = time.perf_counter()
        args = (params, opt_state, _arrays(batch), given(batch.rate_scale))
        if controlled is None:
            params, opt_state, loss = program.plain(*args)
        else:
            (params, opt_state, loss), ctl, telemetry = controlled(ctl, *args)
            applied.append(telemetry["applied"])
        loss.block_until_ready()
        # The first two steps compile.
        seconds += time.perf_counter() - start if step > 1 else 0.0
        bad.append(batch.bad)
        if step + 1 in marks:
            curve.append((step + 1, program.loss(params, opt_state, text.validation, CURVE)))
    validation = program.loss(params, opt_state, text.validation, VALIDATED)
    curve.append((run.steps, program.loss(params, opt_state, text.validation, CURVE)))
    return Result(
        test=program.loss(params, opt_state, text.test, TESTED),
        validation=validation,
        curve=curve,
        step_ms=1e3 * seconds / max(run.steps - 2, 1),
        bad=sum(bad),
        refused={name: int(telemetry[name]) for name in ("non_finite", "refused_norm", "refused_low", "refused_high") if name in telemetry},
        caught=sum(faulty and not float(kept) for faulty, kept in zip(bad, applied, strict=False)),
    )


def initial(config: gpt.Config, seed: jax.Array, numbers: Numbers) -> Any:
    """GPT-2's initial parameters, matrices as many times as large as the numbers say."""

    def scaled(path: Any, p: jax.Array) -> jax.Array:
        embedding = path[0].key in ("wte", "wpe")
        return p * numbers["initial_embedding" if embedding else "initial_hidden"] if p.ndim >= 2 else p

    return jax.tree.map_with_path(scaled, gpt.make_params(config, jax.random.key(seed)))


class Program:
    """The compiled functions of a setting and an optimizer, which serve all numbers, lengths and seeds."""

    def __init__(self, setting: Setting, family: str, static: tuple[tuple[str, float], ...], guard: Guard):
        config, kind = setting.config, FAMILIES[family]

        def optimizer(numbers: Numbers) -> optax.GradientTransformationExtraArgs:
            made = kind.make({**numbers, **dict(static)})
            return optax.apply_if_finite(made, max_consecutive_errors=1_000_000) if guard == "finite" else made

        def scaled(params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            logits = gpt.logits(config, params, batch["inputs"])
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()
            return value * batch["loss_scale"] * setting.loss_scale, value

        def step(params: Any, opt_state: Any, batch: Mapping[str, jax.Array], numbers: Numbers) -> tuple[Any, Any, jax.Array]:
            (_, value), grads = jax.value_and_grad(scaled, has_aux=True)(params, batch)
            if setting.loss_scale != 1.0:
                grads = jax.tree.map(lambda g: g / setting.loss_scale, grads)
            extra = {"value": value} if family == "plateau" else {}
            updates, next_state = optimizer(numbers).update(grads, opt_state, params, **extra)
            next_params = optax.apply_updates(params, updates)
            if guard == "oracle":
                held = lambda old, new: jnp.where(batch["bad"], old, new)
                next_params = jax.tree.map(held, params, next_params)
                # Counts go on, as they do behind the controller's gate.
                floats = lambda old, new: held(old, new) if jnp.issubdtype(old.dtype, jnp.floating) else new
                next_state = jax.tree.map(floats, opt_state, next_state)
            return next_params, next_state, value

        def start(seed: jax.Array, numbers: Numbers) -> tuple[Any, Any]:
            params = initial(config, seed, numbers)
            # Where a state holds parameters, both are donated: a copy keeps them apart.
            return params, jax.tree.map(jnp.copy, optimizer(numbers).init(params))

        def evaluate(params: Any, opt_state: Any, tokens: jax.Array) -> jax.Array:
            return gpt.loss(config, kind.evaluated(opt_state, params), tokens)

        self._setting = setting
        self.plain = jax.jit(step, donate_argnums=(0, 1))
        self.start = jax.jit(start)
        self._evaluate = jax.jit(evaluate)
        self._controlled: list[tuple[set[str], entropic.ControlledStep, entropic.Controller]] = []

    def controlled(self, policy: Policy, numbers: Numbers) -> tuple[entropic.ControlledStep, entropic.Controller]:
        """The step under a policy, and its first `ctl`; not compiled again where another one differs in numbers alone. The
        step is given the numbers that are named here.

        Raises:
          entropic.Error: the policy does not fit the step.
        """
        for names, step, ctl in self._controlled:
            if names != set(numbers):
                continue
            with contextlib.suppress(entropic.PolicyError):
                return step, step.retune(jax.tree.map(jnp.copy, ctl), policy)
        tokens = jax.ShapeDtypeStruct((self._setting.rows, self._setting.context), jnp.int32)
        batch = {"inputs": tokens, "targets": tokens, "loss_scale": np.float32(1), "bad": np.bool_(False)}
        step, ctl = entropic.control(self.plain, (*jax.eval_shape(self.start, 0, numbers), batch, numbers), policy)
        self._controlled = [*self._controlled[-3:], (set(numbers), step, ctl)]
        return step, jax.tree.map(jnp.copy, ctl)

    def loss(self, params: Any, opt_state: Any, text: np.ndarray, count: int) -> float:
        """Nats per byte of so many windows of a text; infinite where it is no number."""
        pieces = windows(text, count, self._setting.context + 1).astype(np.int32)
        parts = [float(self._evaluate(params, opt_state, piece)) for piece in np.split(pieces, count // 128)]
        mean = sum(parts) / len(parts)
        return mean if math.isfinite(mean) else math.inf


_program = functools.lru_cache(maxsize=4)(Program)


def static_of(family: str, numbers: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The numbers that an optimizer has to know when it is compiled."""
    return tuple((name, numbers[name]) for name in sorted(FAMILIES[family].static))


def given_of(family: str, numbers: Mapping[str, float], steps: int, rate_scale: float) -> dict[str, np.float32]:
    """The numbers that a step is given: all others, the length of the run, and what its learning rate is multiplied by."""
    static = FAMILIES[family].static
    given = {name: number for name, number in numbers.items() if name not in static}
    return {name: np.float32(number) for name, number in {**given, "steps": steps, "rate_scale": rate_scale}.items()}


def _arrays(batch: Batch) -> dict[str, Any]:
    return {"inputs": batch.inputs, "targets": batch.targets, "loss_scale": np.float32(batch.loss_scale), "bad": np.bool_(batch.bad)}
