"""`control`: a train step becomes a controlled one.

Guarantees: the step's own arguments, results, donation and shardings stay what they were; where a policy does nothing, so do all
bits of its results. The controller's state is a pytree that the caller carries, like the state of an optimizer.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ._jax import Lowered, Program, call, lower, stablehlo
from ._native import Error, Injected, Policy, PolicyError, RefusedError, Step

PolicyLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | None
"""A path, the name of a policy that comes with the program, a policy's tables, or None for the default."""

Controller: TypeAlias = dict[str, Any]
"""What the controller knows, as a pytree: `policy` f32[P], `state` f32[S], `counters` int32[C]; and under a policy with
snapshots, `snapshots`, a dict of copies by the name of what they are copies of."""

Telemetry: TypeAlias = dict[str, jax.Array]
"""What one step has to tell, by name: f32[] each, those per tensor f32[n] in the order of `ControlledStep.tensors`."""

_PER_TENSOR = frozenset({"scale", "momentum", "switch_rate"})
_PER_TENSOR_AND_GLOBAL = frozenset({"entropy", "smoothed", "target", "ratio", "norm"})


class _Array(NamedTuple):
    """An array that the controller adds: what it is, and of which leaf it is a copy, if of one."""

    kind: str
    leaf: int | None
    aval: Any


def control(
    train_step: Callable[..., Any],
    example_args: Sequence[Any],
    policy: PolicyLike = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
) -> tuple["ControlledStep", Controller]:
    """Puts the controller into a train step.

    Example::

        step, ctl = entropic.control(train_step, (params, opt_state, batch))
        for batch in batches:
            (params, opt_state, loss), ctl, telemetry = step(ctl, params, opt_state, batch)

    Args:
      train_step: any function that `jax.jit` takes, or one that is jitted or pmapped already, whose donation, shardings, static
        arguments and compiler options are kept. It takes parameters and the optimizer's state as arguments and returns their next values.
      example_args: its positional arguments, as a tuple: arrays, or `jax.ShapeDtypeStruct`s, with shardings where those are
        not the default; static arguments as they are.
      policy: a TOML file, or "default", "monitor", "article", "spectral"; or its tables as a dict. None is the default policy: it measures
        everything, and refuses an update whose gradient is not finite or far larger than usual.
      example_kwargs: its arguments by name, likewise.

    Returns:
      The controlled step, called with `ctl` before the step's own arguments; and the first `ctl`, a pytree to carry along and
      to keep in checkpoints.

    Raises:
      RefusedError: no train step is found in the function, or not all of it is understood; the text says why.
      PolicyError: the policy is none, or does not fit the step.
    """
    read = read_policy(policy)
    lowered = lower(train_step, example_args, example_kwargs or {})
    if lowered.controlled:
        raise RefusedError(f"{lowered.name} has a controller already; put the step under control that it was made from")
    step = ControlledStep(lowered, native_step(lowered).inject(read, lowered.platform))
    return step, step.init()


def read_policy(policy: PolicyLike) -> Policy:
    """A policy, from wherever it is."""
    if isinstance(policy, Mapping):
        try:
            return Policy.from_json(json.dumps(policy))
        except (TypeError, ValueError) as error:
            raise PolicyError(f"the policy holds what TOML does not: {error}") from error
    return Policy.open(policy)


def native_step(lowered: Lowered) -> Step:
    """The module of a function, with names for errors and reports."""
    inputs = [lowered.in_names[n] for n in lowered.kept]
    return Step(lowered.module, lowered.name, inputs, list(lowered.out_names), dict(lowered.successors))


def _difference(lowered: Lowered, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """How arguments differ as trees from those of example_args: "with ... beyond", "without ... of"."""

    def paths(tree: Any) -> list[str]:
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]

    def some(names: list[str]) -> str:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    expected = jax.tree.unflatten(lowered.in_tree, range(lowered.in_tree.num_leaves))
    names = dict(zip(paths(expected), lowered.in_names, strict=True))
    found = paths((args, kwargs))
    # A leaf that has no name is called by its place: [0] is of the positional arguments, [1] of the others.
    new, missing = [path for path in found if path not in names], [name for path, name in names.items() if path not in found]
    called = [f"args{path.removeprefix('[0]')}" if path.startswith("[0]") else f"kwargs{path.removeprefix('[1]')}" for path in new]
    parts = [f"with {some(called)} beyond"] * bool(new) + [f"without {some(missing)} of"] * bool(missing)
    return " and ".join(parts) or "with the same leaves in other containers than"


class ControlledStep:
    """A train step with a controller in it: `outputs, ctl, telemetry = step(ctl, *args, **kwargs)`.

    An ordinary function, compiled at its first call like one of `jax.jit`; it may be called in a `jit`, a `scan` or a loop of
    one's own. `ctl` is donated, and so are the arguments that the step donates by itself.

    Attributes:
      tensors: names of the controlled tensors, in the order of telemetry.
      layout: what the elements of `ctl` and telemetry mean, as docs/python.md says.
    """

    def __init__(self, lowered: Lowered, injected: Injected):
        self.layout: dict[str, Any] = json.loads(injected.layout)
        self.tensors: tuple[str, ...] = tuple(tensor["name"] for tensor in self.layout["tensors"])
        self.__name__ = self.__qualname__ = lowered.name
        self._lowered = lowered
        self._injected = injected
        self._inputs = [self._array(entry) for entry in self.layout["inputs"]]
        self._outputs = [self._array(entry) for entry in self.layout["outputs"]]
        self._ctl_shardings = self._pack([self._sharding(array) for array in self._inputs])
        self._ctl_tree = jax.tree.structure(self._pack([0] * len(self._inputs)))
        self._program = self._make_program()
        self._jitted = self._jit()

    def __call__(self, ctl: Controller, *args: Any, **kwargs: Any) -> tuple[Any, Controller, Telemetry]:
        """One step. Returns the step's own results, the next `ctl`, and what the controller saw and did."""
        results, ctl, telemetry = self._jitted(self._checked(ctl), *self._leaves(args, kwargs))
        return self._lowered.out_tree.unflatten(results), ctl, telemetry

    def lower(self, ctl: Controller, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Lowers the step, as `jax.jit` does: `.compile()` gives memory and cost. Its arguments are flat: `ctl`, then leaves."""
        return self._jitted.lower(self._checked(ctl), *self._leaves(args, kwargs))

    def init(self) -> Controller:
        """A `ctl` that has seen nothing yet, on the devices of the step."""
        injected = self._injected
        values = {"policy": injected.policy, "state": injected.state, "counters": injected.counters}
        if jax.process_count() == 1 and all(kind in values for kind, _, _ in self._inputs):
            # Without a compilation, which takes longer than these few numbers are worth.
            arrays = self._pack([np.asarray(values[kind], aval.dtype) for kind, _, aval in self._inputs])
            return jax.device_put(arrays, self._ctl_shardings, may_alias=False)

        def made() -> Controller:
            arrays = [
                jnp.asarray(values[kind], aval.dtype) if kind in values else jnp.zeros(aval.shape, aval.dtype)
                for kind, _, aval in self._inputs
            ]
            return self._pack(arrays)

        return jax.jit(made, out_shardings=self._ctl_shardings)()

    def retune(self, ctl: Controller, policy: PolicyLike) -> Controller:
        """`ctl` with the numbers of another policy, without another compilation; the old one stays as it is.

        Args:
          ctl: what `control` or a step returned.
          policy: as in `control`; it may differ from the one under which the step was injected in numbers alone.

        Raises:
          PolicyError: it differs in structure, which is in the program.
        """
        numbers = np.asarray(self._injected.policy_numbers(read_policy(policy)), np.float32)
        return {**ctl, "policy": jax.device_put(numbers, ctl["policy"].sharding)}

    def _leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        lowered = self._lowered
        args, kwargs, static = lowered.static.split(args, kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs))
        if tree != lowered.in_tree:
            raise Error(
                f"{lowered.name} is called {_difference(lowered, args, kwargs)} what it was put under control for; call it as in "
                "example_args, or call entropic.control again with arguments like these"
            )
        if static != lowered.static_values:
            raise Error(
                f"{lowered.name} was put under control for the static arguments {lowered.static_values}, and is called with "
                f"{static}; call entropic.control again with these"
            )
        return leaves

    def _make_program(self) -> Program:
        lowered = self._lowered
        return Program(
            name=lowered.name,
            stablehlo=stablehlo(self._injected.module),
            devices=len(lowered.devices),
            in_avals=(*(lowered.in_avals[n] for n in lowered.kept), *(array.aval for array in self._inputs)),
            in_names=(*(lowered.in_names[n] for n in lowered.kept), *(f"ctl's {array.kind}" for array in self._inputs)),
            out_avals=(*lowered.out_avals, *(array.aval for array in self._outputs)),
            controlled=True,
        )

    def _jit(self) -> Any:
        lowered, program = self._lowered, self._program
        own = len(lowered.out_avals)

        def step(ctl: Controller, *leaves: Any) -> tuple[list[Any], Controller, Telemetry]:
            before = self._unpack(ctl)
            results = call(program, *(leaves[n] for n in lowered.kept), *before)
            after = {(kind, leaf): value for (kind, leaf, _), value in zip(self._outputs, results[own:], strict=True)}
            # What has no successor stays: the policy's numbers.
            following = [after.get((kind, leaf), old) for (kind, leaf, _), old in zip(self._inputs, before, strict=True)]
            return results[:own], self._pack(following), self._telemetry(after["telemetry", None])

        step.__name__ = step.__qualname__ = lowered.name
        return jax.jit(
            step,
            donate_argnums=(0, *(1 + n for n, donated in enumerate(lowered.donated) if donated)),
            in_shardings=(self._ctl_shardings, *lowered.in_shardings),
            out_shardings=(list(lowered.out_shardings), self._ctl_shardings, self._everywhere()),
            compiler_options=lowered.compiler_options,
        )

    def _telemetry(self, vector: jax.Array) -> Telemetry:
        """The fields of the vector; where a launch does several steps, each of them has its own along the first dimension."""
        count = len(self.tensors)
        telemetry: Telemetry = {}
        for field in self.layout["telemetry"]:
            name, start = field["name"], field["offset"]
            if name in _PER_TENSOR or name in _PER_TENSOR_AND_GLOBAL:
                telemetry[name] = vector[..., start : start + count]
            else:
                telemetry[name] = vector[..., start]
            if name in _PER_TENSOR_AND_GLOBAL:
                telemetry[f"global_{name}"] = vector[..., start + count]
        return telemetry

    def _array(self, entry: Mapping[str, Any]) -> _Array:
        """What the layout says of an appended input or output."""
        kind, shape = entry["kind"], tuple(entry["dims"])
        if kind == "snapshot":
            leaf = self._lowered.kept[entry["copy_of"]]
            dtype = self._lowered.in_avals[leaf].dtype
            # A typed key is its words in the module.
            return _Array(kind, leaf, aval(shape, np.uint32 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype))
        if kind == "telemetry" and self.layout.get("steps", 1) > 1:
            shape = (self.layout["steps"], *shape)
        return _Array(kind, None, aval(shape, np.int32 if kind == "counters" else np.float32))

    def _pack(self, arrays: Sequence[Any]) -> Controller:
        ctl: Controller = {}
        for (kind, leaf, _), array in zip(self._inputs, arrays, strict=True):
            if leaf is None:
                ctl[kind] = array
            else:
                ctl.setdefault("snapshots", {})[self._lowered.in_names[leaf]] = array
        return ctl

    def _unpack(self, ctl: Controller) -> list[Any]:
        names = self._lowered.in_names
        return [ctl[kind] if leaf is None else ctl["snapshots"][names[leaf]] for kind, leaf, _ in self._inputs]

    def _checked(self, ctl: Controller) -> Controller:
        tree = jax.tree.structure(ctl)
        if tree != self._ctl_tree:
            raise Error(f"ctl is {tree}, not {self._ctl_tree}; give the one that entropic.control or the step before returned")
        return ctl

    def _sharding(self, array: _Array) -> Sharding | None:
        """All devices have all of it, and of a copy as much as of what it is a copy of."""
        return self._everywhere() if array.leaf is None else self._lowered.settled_shardings[array.leaf]

    def _everywhere(self) -> Sharding | None:
        """The placement of an array that all devices have all of; None where there is but one."""
        devices, mesh = self._lowered.devices, self._lowered.mesh
        if len(devices) == 1:
            return None
        return NamedSharding(Mesh(np.asarray(devices), ("devices",)) if mesh is None else mesh, PartitionSpec())


def aval(shape: Sequence[int], dtype: Any) -> Any:
    """Shape and dtype as JAX's abstract value."""
    return jax.core.ShapedArray(tuple(shape), np.dtype(dtype))
