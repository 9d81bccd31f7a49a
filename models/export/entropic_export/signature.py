"""Names and pairs the leaves of a train step: which input is state, which output succeeds it, which one is the loss.

Guarantees: every leaf gets the path that JAX itself prints (`params['h0']['qkv']`, `result[2]`). Refuses
(`ValueError`) what it cannot decide and names the argument of `export_bundle` that decides it; nothing is guessed from
array contents.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from .manifest import STATE_ROLES, Role

_PARAM_NAMES = frozenset({"p", "param", "params", "weight", "weights", "variables", "model"})
_OPT_NAMES = frozenset({"s", "opt", "opt_state", "optim", "optimizer", "optimizer_state", "optimizer_states"})
_RNG_NAMES = frozenset({"rng", "rngs", "key", "prng_key", "dropout_rng"})


class Leaf(NamedTuple):
    """One flattened input or output: its path and the array that the module holds for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_key: bool


def physical(spec: Any) -> tuple[str, tuple[int, ...], bool]:
    """dtype name, shape, and whether it is a typed PRNG key, which a module holds as its uint32 words."""
    if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(spec.shape, spec.dtype))
        return np.dtype(words.dtype).name, tuple(words.shape), True
    return np.dtype(spec.dtype).name, tuple(spec.shape), False


def leaves_of(prefix: str, tree: Any) -> list[Leaf]:
    """The leaves of a pytree of specs with their paths under `prefix`."""
    flat, _ = tree_flatten_with_path(tree)
    return [Leaf(prefix + keystr(path), *physical(spec)) for path, spec in flat]


def argument_names(step: Callable[..., Any], count: int) -> list[str]:
    """The names JAX gives to `count` positional arguments of `step`."""
    names: list[str] = []
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{n}]" for n in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    names += [f"args[{n}]" for n in range(len(names), count)]
    return names[:count]


def role_of(leaf: Leaf, argument: str, position: int, state_count: int, roles: Mapping[str, str]) -> Role:
    """The role of a state leaf.

    `roles` maps a path prefix to a role, and the longest one that matches wins. Without one: a typed key is `rng`; then
    the outermost known name among the argument and the components of the path decides (`opt_state.params` is not a
    parameter), where a known key is also an unsigned integer, and the name of a sole state argument only ever says
    `param` (in `step(s, batch)`, `s` holds everything). Of several state arguments with unknown names the first is
    `param` and the second `opt`; what is left is `state`.
    """
    matching = [prefix for prefix in roles if leaf.name.startswith(prefix)]
    if matching:
        role = roles[max(matching, key=len)]
        if role not in STATE_ROLES:
            raise ValueError(f"roles: {role!r} is no role of a state; use one of {', '.join(STATE_ROLES)}")
        return role  # type: ignore[return-value]
    if leaf.is_key:
        return "rng"
    components = [argument, *re.findall(r"\w+", leaf.name[len(argument) :])]
    for depth, component in enumerate(components):
        name = component.lower()
        if name in _PARAM_NAMES:
            return "param"
        if depth == 0 and state_count == 1:
            continue
        if name in _OPT_NAMES:
            return "opt"
        if name in _RNG_NAMES and leaf.dtype.startswith("uint"):
            return "rng"
    if state_count > 1 and position < 2:
        return ("param", "opt")[position]
    return "state"


def successors(states: Sequence[Any], outputs: Sequence[Any], chosen: Sequence[int] | None) -> list[int]:
    """For each state argument the position of the output that succeeds it.

    An output succeeds a state when tree structure, shapes and dtypes agree. The leading outputs are preferred; else
    each state must have exactly one possible successor.
    """
    if chosen is not None:
        if len(chosen) != len(states) or len(set(chosen)) != len(chosen):
            raise ValueError(f"state_outputs: {list(chosen)} must name {len(states)} different outputs, one per state")
        for number, at in enumerate(chosen):
            if not 0 <= at < len(outputs):
                raise ValueError(f"state_outputs: the step has {len(outputs)} outputs, there is no output {at}")
            if not _agree(states[number], outputs[at]):
                raise ValueError(f"state_outputs: {_difference(number, states[number], at, outputs[at])}")
        return list(chosen)
    if len(outputs) >= len(states) and all(_agree(s, o) for s, o in zip(states, outputs, strict=False)):
        return list(range(len(states)))
    found: list[int] = []
    for number, state in enumerate(states):
        candidates = [at for at, output in enumerate(outputs) if _agree(state, output)]
        if len(candidates) != 1:
            why = f"outputs {candidates} all match it" if candidates else "no output matches it"
            near = ""
            if not candidates and number < len(outputs):
                near = f"; {_difference(number, state, number, outputs[number])}"
            raise ValueError(
                f"state argument {number}: {why}{near}. The new state must have the tree, shapes and dtypes of "
                "the old; name the positions with state_outputs=(...)"
            )
        found += candidates
    if len(set(found)) != len(found):
        raise ValueError(f"two state arguments share an output ({found}); name the positions with state_outputs=(...)")
    return found


def loss_of(candidates: Sequence[tuple[int, Leaf]], wanted: str | None) -> int | None:
    """The index of the loss among the (output index, leaf) pairs that succeed no state.

    `wanted` is a path (`result[2]`, or its end, `['loss']`). Without it: the only floating scalar; else the only one
    whose last path component is `loss`; else the first one that is a whole output of its own. None without any.
    """
    if wanted is not None:
        named = [n for n, leaf in candidates if leaf.name == wanted] or [
            n for n, leaf in candidates if leaf.name.endswith(wanted)
        ]
        if len(named) != 1:
            names = ", ".join(leaf.name for _, leaf in candidates)
            raise ValueError(f"loss: {wanted!r} names {len(named)} of the outputs that are not state: {names}")
        return named[0]
    scalars = [(n, leaf) for n, leaf in candidates if leaf.shape == () and "float" in leaf.dtype]
    if len(scalars) <= 1:
        return scalars[0][0] if scalars else None
    for test in (
        lambda leaf: leaf.name.rstrip("']").replace("'", ".").replace("[", ".").split(".")[-1] == "loss",
        lambda leaf: leaf.name.count("[") == 1 and leaf.name.startswith("result["),
    ):
        named = [n for n, leaf in scalars if test(leaf)]
        if len(named) == 1:
            return named[0]
    names = ", ".join(leaf.name for _, leaf in scalars)
    raise ValueError(f"several outputs could be the loss: {names}; name one with loss='...'")


def _agree(state: Any, output: Any) -> bool:
    return _tree(state) == _tree(output) and all(
        physical(s) == physical(o) for s, o in zip(jax.tree.leaves(state), jax.tree.leaves(output), strict=True)
    )


def _tree(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _difference(number: int, state: Any, at: int, output: Any) -> str:
    """Says where a state and an output part, in one sentence."""
    if _tree(state) != _tree(output):
        return f"output {at} has another tree structure than state argument {number}"
    for old, new in zip(leaves_of("", state), leaves_of("", output), strict=True):
        if old[1:] != new[1:]:
            return (
                f"output {at} differs from state argument {number} at {old.name or 'its only leaf'}: "
                f"{new.dtype}{list(new.shape)} after, {old.dtype}{list(old.shape)} before"
            )
    return f"output {at} matches state argument {number}"
