"""`inspect` says what is found in a train step; `expose` adds its gradients to what it returns.

Neither runs the step.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax

from ._control import aval, native_step
from ._jax import Lowered, Program, call, lower, stablehlo


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A trainable array.

    Attributes:
      name: its path in the arguments, as JAX prints it.
      shape: element type and shape, as HLO writes them: `f32[8,4]`.
      gradient: the name of its gradient in the module (`eff`: what the optimizer consumes); None where there is none.
      update: what the step adds to it, by name; None where the module holds no such value.
      moments: paths of the states that belong to it.
      confidence: "strong" where structure alone decided; "weak" where the alias table broke a tie, or the gradient is known up to
        a constant factor.
      reasons: why; and why there is no gradient.
    """

    name: str
    shape: str
    gradient: str | None
    update: str | None
    moments: tuple[str, ...]
    confidence: str
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class State:
    """An array that is carried from step to step.

    Attributes:
      name: its path in the arguments.
      shape: element type and shape, as HLO writes them.
      role: what it is: "parameter", "moment", "schedule-counter", ...
      held: what a refused step does with it: "held" keeps its bits, "advancing" goes on, of "both" the policy decides; what is
        "unclassified" has to be assigned by the policy before it gates.
      reason: why.
    """

    name: str
    shape: str
    role: str
    held: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a train step. Printed, it is tables.

    Attributes:
      parameters, states: what is trained, and all that is carried on.
      batch: paths of the inputs that are neither.
      loss: path of the loss among the results; None where it was not recognised.
      report: everything, as in the JSON of `entropic inspect --json`.
      text: the tables.
    """

    parameters: tuple[Parameter, ...]
    states: tuple[State, ...]
    batch: tuple[str, ...]
    loss: str | None
    report: Mapping[str, Any] = dataclasses.field(repr=False)
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


def inspect(
    train_step: Callable[..., Any], example_args: Sequence[Any], *, example_kwargs: Mapping[str, Any] | None = None
) -> Inspection:
    """Finds gradients, updates, moments and states in a train step.

    Args:
      train_step, example_args, example_kwargs: as in `entropic.control`.

    Returns:
      What was found; `print` it to read it.

    Raises:
      RefusedError: no train step is found; the text says why.
    """
    report, text = native_step(lower(train_step, example_args, example_kwargs or {})).inspect()
    found = json.loads(report)
    return Inspection(
        parameters=tuple(map(_parameter, found["parameters"])),
        states=tuple(State(s["name"], s["shape"], s["role"], s["class"], s["reason"]) for s in found["states"]),
        batch=tuple(named["name"] for named in found["batch"]),
        loss=found["loss"] and found["loss"]["name"],
        report=found,
        text=text,
    )


def expose(
    train_step: Callable[..., Any],
    example_args: Sequence[Any],
    view: Literal["eff", "preclip", "raw"] = "eff",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """The step with its gradients, as they were found in its graph: `outputs, gradients = exposed(*args, **kwargs)`.

    Args:
      train_step, example_args, example_kwargs: as in `entropic.control`.
      view: what the optimizer consumes ("eff"), the same before clipping and unscaling ("preclip"), or before weight decay too
        ("raw").

    Returns:
      An ordinary function, to be jitted by whoever calls it. It donates nothing. `gradients` are by path of their parameter;
      one without a gradient is not among them.

    Raises:
      RefusedError: no train step is found; the text says why.
    """
    lowered = lower(train_step, example_args, example_kwargs or {})
    module, gradients = native_step(lowered).expose(view)
    names = [name for name, _, _ in gradients]
    program = Program(
        name=lowered.name,
        stablehlo=stablehlo(module),
        devices=len(lowered.devices),
        in_avals=tuple(lowered.in_avals[n] for n in lowered.kept),
        in_names=tuple(lowered.in_names[n] for n in lowered.kept),
        out_avals=(*lowered.out_avals, *(aval(shape, dtype) for _, dtype, shape in gradients)),
    )

    def exposed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        args, kwargs, _ = lowered.static.split(args, kwargs)
        leaves = lowered.in_tree.flatten_up_to((args, kwargs))
        results = call(program, *(leaves[n] for n in lowered.kept))
        own = len(lowered.out_avals)
        return lowered.out_tree.unflatten(results[:own]), dict(zip(names, results[own:], strict=True))

    exposed.__name__ = exposed.__qualname__ = lowered.name
    return exposed


def _parameter(found: Mapping[str, Any]) -> Parameter:
    gradient, absent = found["gradient"], found["no_gradient"]
    return Parameter(
        name=found["name"],
        shape=found["shape"],
        gradient=gradient and gradient["eff"],
        update=found["update"]["u"],
        moments=tuple(moment["name"] for moment in found["moments"]),
        confidence=found["confidence"],
        reasons=tuple(found["reasons"]) + ((absent,) if absent else ()),
    )
