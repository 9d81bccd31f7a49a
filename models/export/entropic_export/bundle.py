"""Writes a train step, its initial state and its evaluation as a bundle of HLO modules with a manifest.

Guarantees: the training code is only traced, never changed or run; the same code and the same JAX give the same bytes;
unless asked, no file name, function name or line number is written. Refuses (`ValueError`) steps whose state cannot be
told from their outputs and modules that do not hold what the manifest would say.
"""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from . import wire
from .manifest import Eval, Init, Input, Launch, Manifest, Output, Role, TokenWindows
from .signature import Leaf, argument_names, leaves_of, loss_of, role_of, successors

MODULE_FILE, INIT_FILE, EVAL_FILE, MANIFEST_FILE = "module.hlo.pb", "init.hlo.pb", "eval.hlo.pb", "manifest.json"

_SEED = jax.ShapeDtypeStruct((), np.uint32)

# numpy names to XLA's PrimitiveType, where the check of a module's shapes knows the type.
_ELEMENT_TYPES = {
    "bool": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint8": 6, "uint16": 7, "uint32": 8, "uint64": 9,
    "float16": 10, "float32": 11, "float64": 12, "complex64": 15, "bfloat16": 16, "complex128": 18,
}  # fmt: skip


def export_bundle(
    step: Callable[..., Any],
    init: Callable[[Any], Any] | Any,
    batch: Any,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    eval_step: Callable[..., Any] | None = None,
    state_argnums: int | Sequence[int] | None = None,
    state_outputs: int | Sequence[int] | None = None,
    loss: str | None = None,
    roles: Mapping[str, str] | None = None,
    data: Literal["bytes", "tokens"] | None = None,
    vocab: int | None = None,
    steps_per_launch: int = 1,
    donate: bool | None = None,
    platform: str = "cpu",
    keep_source_locations: bool = False,
    versions_of: Sequence[str] = (),
) -> Manifest:
    """Exports a train step as a bundle: `module.hlo.pb`, `init.hlo.pb`, `eval.hlo.pb` and `manifest.json` in `path`.

    Example::

        def step(params, opt_state, tokens):
            loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        def init(seed):
            params = make_params(jax.random.key(seed))
            return params, tx.init(params)

        export_bundle(step, init, jax.ShapeDtypeStruct((16, 129), "int32"), "models/mine", data="bytes")

    Args:
      step: any function that `jax.jit` takes, or one already jitted: `step(*state, *batch) -> outputs`. State and
        batch are pytrees. Static arguments must be bound before (`functools.partial`).
      init: `init(seed)`, a scalar uint32 in, the initial state out. A plain tuple is one state argument per element
        (`return params, opt_state`); anything else is a single state argument (`return train_state`). To export
        without an initial state pass the state itself instead, as arrays or `jax.ShapeDtypeStruct`s, likewise.
      batch: arrays or `jax.ShapeDtypeStruct`s. A plain tuple is one argument per element, anything else one argument.
      path: the folder to write; made when missing. Files of an earlier bundle are replaced.
      name: the bundle's name; by default the folder's.
      eval_step: called like `step`, returns the scalar held-out loss. It may ignore any argument.
      state_argnums: positions of the state arguments of `step`; by default they come first.
      state_outputs: positions of their successors among the step's outputs; by default found by tree and shapes.
      loss: path of the loss among the outputs (`result[2]`, or its end: `['loss']`); by default the scalar float.
      roles: path prefix to `param`, `opt`, `rng` or `state`, where names do not say it (`{"state.ema": "state"}`).
      data: "bytes" or "tokens" when the batch is one integer array [batch, window] of consecutive token ids. None for
        any other batch: `entropic train` feeds it from arrays with the names of its leaves, whose first dimension
        counts examples.
      vocab: number of token ids; 256 for bytes.
      steps_per_launch: K, where `step` loops over K train steps by itself (`lax.scan(train_step, state, batches)`): the
        first dimension of every array of `batch`, and of every output that each of the steps makes. `eval_step` takes
        the batch of one step, without that dimension.
      donate: whether the state's buffers are donated. By default yes, and a jitted `step` keeps what it declares.
      platform: the platform to lower for ("cpu", "cuda", "tpu"). Steps of plain operations lower alike for all.
      keep_source_locations: keeps file names and lines in the modules, for a profiler to show.
      versions_of: more packages whose versions the manifest should name; those of jax and jaxlib it always names.

    Returns:
      The manifest as written.

    Raises:
      ValueError: the state, the loss or the data cannot be told; the message says which argument decides it.
    """
    folder = pathlib.Path(path)
    call = _Call.of(step, jax.eval_shape(init, _SEED) if callable(init) else _specs(init), batch, state_argnums)
    lowered = _jitted(step, call.state_at, donate).trace(*call.arguments).lower(lowering_platforms=(platform,))
    module = _module(lowered, keep_source_locations)
    index_of = {leaf: index for index, leaf in enumerate(_kept(lowered, len(call.leaves)))}
    leaf_roles = call.roles(roles or {})
    _check_stacked(call, leaf_roles, steps_per_launch)
    inputs = [Input(call.leaves[n].name, call.leaves[n].dtype, call.leaves[n].shape, leaf_roles[n]) for n in index_of]
    outputs = _outputs(call, lowered.out_info, index_of, leaf_roles, state_outputs, loss, steps_per_launch)
    _check_shapes(module, inputs, outputs)
    files: dict[str, bytes] = {MODULE_FILE: module}

    init_entry = None
    if callable(init):
        # The module lists its inputs in argument order, which need not be the order in which init returns states.
        made = sorted((n, at) for at, n in enumerate(call.state_leaves()) if n in index_of)
        files[INIT_FILE] = _init_module(init, [at for _, at in made], platform, keep_source_locations)
        init_entry = Init(INIT_FILE, "uint32", tuple(index_of[n] for n, _ in made))

    eval_entry = None
    if eval_step is not None:
        arguments = call.arguments if steps_per_launch == 1 else call.one_step()
        evaluated = jax.jit(eval_step).trace(*arguments).lower(lowering_platforms=(platform,))
        result = jax.tree.leaves(evaluated.out_info)
        if len(result) != 1 or result[0].shape != () or not jax.dtypes.issubdtype(result[0].dtype, np.floating):
            raise ValueError("eval_step must return one floating scalar, the held-out loss")
        used = _kept(evaluated, len(call.leaves))
        lost = [call.leaves[n].name for n in used if n not in index_of]
        if lost:
            raise ValueError(f"eval_step reads {', '.join(lost)}, which the step itself does not use")
        files[EVAL_FILE] = _module(evaluated, keep_source_locations)
        eval_entry = Eval(EVAL_FILE, tuple(index_of[n] for n in used))

    manifest = Manifest(
        name=name or folder.resolve().name,
        module=MODULE_FILE,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        init=init_entry,
        eval=eval_entry,
        data=_data(data, vocab, inputs, steps_per_launch),
        target_platforms=(platform,),
        versions={p: importlib.metadata.version(p) for p in sorted({"jax", "jaxlib", *versions_of})},
        launch=Launch(steps=steps_per_launch) if steps_per_launch > 1 else None,
    )
    files[MANIFEST_FILE] = manifest.to_json().encode()
    _write(folder, files)
    return manifest


@dataclasses.dataclass(frozen=True)
class _Call:
    """How a step is called: its arguments as specs, and their leaves in flattening order.

    Attributes:
      names: the name of each positional argument.
      arguments: the pytree of specs of each.
      state_at: the position of each state argument, in the order in which `init` returns them.
      leaves: all leaves of all arguments.
      owner: the argument that each leaf belongs to.
      starts: the first leaf of each argument.
    """

    names: list[str]
    arguments: list[Any]
    state_at: list[int]
    leaves: list[Leaf]
    owner: list[int]
    starts: list[int]

    @classmethod
    def of(cls, step: Callable[..., Any], state: Any, batch: Any, state_argnums: int | Sequence[int] | None) -> "_Call":
        states = list(state) if type(state) is tuple else [state]
        batches = [_specs(b) for b in batch] if type(batch) is tuple else [_specs(batch)]
        count = len(states) + len(batches)
        state_at = _positions(state_argnums, len(states), count, "state_argnums")
        at_position = dict(zip(state_at, states, strict=True))
        rest = iter(batches)
        arguments = [at_position[n] if n in at_position else next(rest) for n in range(count)]
        names = argument_names(step, count)
        owned = [(leaf, n) for n in range(count) for leaf in leaves_of(names[n], arguments[n])]
        sizes = [len(jax.tree.leaves(argument)) for argument in arguments]
        starts = [sum(sizes[:n]) for n in range(count)]
        return cls(names, arguments, state_at, [leaf for leaf, _ in owned], [n for _, n in owned], starts)

    def state_leaves(self) -> list[int]:
        """The leaves of the state in the order in which `init` returns them."""
        return [self.starts[at] + n for at in self.state_at for n in range(len(jax.tree.leaves(self.arguments[at])))]

    def one_step(self) -> list[Any]:
        """The arguments of one step of several: batches without their first dimension."""

        def first(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

        states = set(self.state_at)
        return [a if n in states else jax.tree.map(first, a) for n, a in enumerate(self.arguments)]

    def roles(self, given: Mapping[str, str]) -> list[Role]:
        """The role of each leaf."""
        number = {at: n for n, at in enumerate(self.state_at)}
        return [
            role_of(leaf, self.names[at], number[at], len(number), given) if at in number else "batch"
            for leaf, at in zip(self.leaves, self.owner, strict=True)
        ]


def _outputs(
    call: _Call,
    out_info: Any,
    index_of: Mapping[int, int],
    leaf_roles: Sequence[Role],
    state_outputs: int | Sequence[int] | None,
    loss: str | None,
    steps: int,
) -> list[Output]:
    """The flattened outputs of the step; `index_of` maps a leaf of the call to its input of the module."""
    is_tuple = type(out_info) is tuple
    tops: list[Any] = list(out_info) if is_tuple else [out_info]
    count = len(call.state_at)
    chosen = None if state_outputs is None else _positions(state_outputs, count, len(tops), "state_outputs")
    states = [call.arguments[at] for at in call.state_at]
    first_leaf = {top: call.starts[at] for top, at in zip(successors(states, tops, chosen), call.state_at, strict=True)}
    outputs: list[Output] = []
    others: list[tuple[int, Leaf]] = []
    for top, tree in enumerate(tops):
        for offset, leaf in enumerate(leaves_of(f"result[{top}]" if is_tuple else "result", tree)):
            if top in first_leaf:
                old = first_leaf[top] + offset
                outputs.append(Output(leaf.name, leaf.dtype, leaf.shape, leaf_roles[old], index_of.get(old)))
            elif steps == 1 or leaf.shape[:1] == (steps,):
                one = leaf.shape if steps == 1 else leaf.shape[1:]
                others.append((len(outputs), leaf._replace(shape=one)))
                outputs.append(Output(leaf.name, leaf.dtype, leaf.shape, "aux", None))
            else:
                # What the loop ends with is no report of each step.
                outputs.append(Output(leaf.name, leaf.dtype, leaf.shape, "state", None))
    loss_at = loss_of(others, loss)
    if loss_at is not None:
        outputs[loss_at] = dataclasses.replace(outputs[loss_at], role="loss")
    return outputs


def _check_stacked(call: _Call, roles: Sequence[Role], steps: int) -> None:
    """Whether there is a batch for each step of a launch."""
    if steps < 1:
        raise ValueError(f"steps_per_launch={steps}: a launch does one step or more")
    for leaf, role in zip(call.leaves, roles, strict=True):
        if steps > 1 and role == "batch" and leaf.shape[:1] != (steps,):
            raise ValueError(
                f"steps_per_launch={steps}: the batch input {leaf.name} is {leaf.dtype}{list(leaf.shape)}; its first "
                f"dimension must be {steps}, one batch for each step of a launch"
            )


def _specs(tree: Any) -> Any:
    """Arrays, numbers and specs as `jax.ShapeDtypeStruct`s with the dtypes that JAX would give them."""

    def spec(leaf: Any) -> jax.ShapeDtypeStruct:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.eval_shape(lambda x: x, leaf)

    return jax.tree.map(spec, tree)


def _positions(given: int | Sequence[int] | None, wanted: int, limit: int, what: str) -> list[int]:
    if given is None:
        return list(range(wanted))
    positions = [given] if isinstance(given, int) else list(given)
    if len(positions) != wanted or len(set(positions)) != wanted or not all(0 <= p < limit for p in positions):
        raise ValueError(f"{what}: {positions} must name {wanted} different positions below {limit}, one per state")
    return positions


def _jitted(step: Callable[..., Any], state_at: Sequence[int], donate: bool | None) -> Any:
    """The step under `jax.jit`. One that is jitted already keeps its own donation unless told otherwise."""
    if hasattr(step, "trace") and hasattr(step, "lower"):
        if donate is None:
            return step
        step = inspect.unwrap(step)
    return jax.jit(step, donate_argnums=tuple(state_at) if donate is not False else ())


def _kept(lowered: Any, count: int) -> list[int]:
    """The flat inputs that the module still has: JAX drops those that nothing reads."""
    kept = lowered._lowering.compile_args["kept_var_idx"]
    return sorted(kept) if kept is not None else list(range(count))


def _module(lowered: Any, keep_source_locations: bool) -> bytes:
    module = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
    return wire.canonicalize(module if keep_source_locations else wire.strip_source_locations(module))


def _init_module(
    init: Callable[[Any], Any],
    wanted: Sequence[int],
    platform: str,
    keep_source_locations: bool,
) -> bytes:
    def initial_state(seed: Any) -> list[Any]:
        leaves = jax.tree.leaves(init(seed))
        return [
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            for leaf in (jax.numpy.asarray(leaves[n]) for n in wanted)
        ]

    # The seed stays a parameter even where init ignores it, so that every init module is called alike.
    lowered = jax.jit(initial_state, keep_unused=True).trace(_SEED).lower(lowering_platforms=(platform,))
    return _module(lowered, keep_source_locations)


def _check_shapes(module: bytes, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    """Holds the manifest against the module itself: JAX's bookkeeping of dropped inputs is not a public interface."""
    parameters, results = wire.entry_shapes(module)
    sides: tuple[tuple[str, Sequence[Input | Output], list[tuple[int, tuple[int, ...]]]], ...] = (
        ("input", inputs, parameters),
        ("output", outputs, results),
    )
    for what, entries, shapes in sides:
        if len(entries) != len(shapes):
            raise ValueError(f"the module has {len(shapes)} {what}s, the step {len(entries)}")
        for index, (entry, (element_type, dimensions)) in enumerate(zip(entries, shapes, strict=True)):
            expected = _ELEMENT_TYPES.get(entry.dtype, element_type)
            if entry.shape != dimensions or expected != element_type:
                raise ValueError(
                    f"{what} {index} ({entry.name}) is {entry.dtype}{list(entry.shape)} in the step but has element "
                    f"type {element_type} and dimensions {list(dimensions)} in the module"
                )


def _data(kind: str | None, vocab: int | None, inputs: Sequence[Input], steps: int) -> TokenWindows | None:
    if kind is None:
        return None
    if kind not in ("bytes", "tokens"):
        raise ValueError(f"data: {kind!r} is unknown; use 'bytes' or 'tokens'")
    at = [n for n, entry in enumerate(inputs) if entry.role == "batch"]
    rank = 2 if steps == 1 else 3
    if len(at) != 1 or len(inputs[at[0]].shape) != rank or not np.issubdtype(np.dtype(inputs[at[0]].dtype), np.integer):
        found = ", ".join(f"{inputs[n].name}: {inputs[n].dtype}{list(inputs[n].shape)}" for n in at)
        raise ValueError(
            f"data={kind!r} needs one integer batch input [batch, window]; the module has {found or 'none'}"
        )
    if kind == "bytes" and vocab not in (None, 256):
        raise ValueError(f"data='bytes' has 256 token ids, not {vocab}")
    if kind == "tokens" and vocab is None:
        raise ValueError("data='tokens' needs vocab=, the number of token ids")
    rows, window = inputs[at[0]].shape[-2:]
    return TokenWindows(kind, at[0], rows, window, vocab or 256, f"nats/{kind.removesuffix('s')}")  # type: ignore[arg-type]


def _write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes each file aside and renames it, the manifest last; then drops what only an earlier bundle had."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        aside = folder / f".{name}.part"
        aside.write_bytes(content)
        aside.replace(folder / name)
    for name in {INIT_FILE, EVAL_FILE} - files.keys():
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
