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
from .manifest import Eval, Init, Input, Manifest, Output, TokenWindows
from .signature import Leaf, argument_names, leaves_of, loss_of, role_of, successors

MODULE_FILE, INIT_FILE, EVAL_FILE, MANIFEST_FILE = "module.hlo.pb", "init.hlo.pb", "eval.hlo.pb", "manifest.json"

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
      data: "bytes" or "tokens" when the batch is one integer array [batch, window] of consecutive token ids.
      vocab: number of token ids; 256 for bytes.
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
    seed = jax.ShapeDtypeStruct((), np.uint32)
    made = jax.eval_shape(init, seed) if callable(init) else _specs(init)
    states: list[Any] = list(made) if type(made) is tuple else [made]
    batches: list[Any] = [_specs(b) for b in batch] if type(batch) is tuple else [_specs(batch)]

    count = len(states) + len(batches)
    state_at = _positions(state_argnums, len(states), count, "state_argnums")
    arguments: list[Any] = [None] * count
    for at, state in zip(state_at, states, strict=True):
        arguments[at] = state
    batch_at = [at for at in range(count) if at not in state_at]
    for at, value in zip(batch_at, batches, strict=True):
        arguments[at] = value

    names = argument_names(step, count)
    flat: list[tuple[Leaf, int]] = [(leaf, at) for at in range(count) for leaf in leaves_of(names[at], arguments[at])]

    lowered = _jitted(step, state_at, donate).trace(*arguments).lower(lowering_platforms=(platform,))
    module = _module(lowered, keep_source_locations)
    kept = _kept(lowered, len(flat))
    out_info = lowered.out_info
    outputs_are_tuple = type(out_info) is tuple
    tops: list[Any] = list(out_info) if outputs_are_tuple else [out_info]
    prefixes = [f"result[{n}]" for n in range(len(tops))] if outputs_are_tuple else ["result"]

    index_of = {flat_index: index for index, flat_index in enumerate(kept)}
    starts = _starts(arguments)
    inputs = []
    for flat_index in kept:
        leaf, at = flat[flat_index]
        if at in state_at:
            role = role_of(leaf, names[at], state_at.index(at), len(states), roles or {})
        else:
            role = "batch"
        inputs.append(Input(leaf.name, leaf.dtype, leaf.shape, role))

    chosen = _positions(state_outputs, len(states), len(tops), "state_outputs") if state_outputs is not None else None
    succeeded_by = successors(states, tops, chosen)
    state_of_top = {top: number for number, top in enumerate(succeeded_by)}
    outputs: list[Output] = []
    others: list[tuple[int, Leaf]] = []
    for top, (prefix, tree) in enumerate(zip(prefixes, tops, strict=True)):
        for offset, leaf in enumerate(leaves_of(prefix, tree)):
            if top in state_of_top:
                number = state_of_top[top]
                flat_index = starts[state_at[number]] + offset
                source, at = flat[flat_index]
                role = role_of(source, names[at], number, len(states), roles or {})
                outputs.append(Output(leaf.name, leaf.dtype, leaf.shape, role, index_of.get(flat_index)))
            else:
                others.append((len(outputs), leaf))
                outputs.append(Output(leaf.name, leaf.dtype, leaf.shape, "aux", None))
    loss_at = loss_of(others, loss)
    if loss_at is not None:
        outputs[loss_at] = dataclasses.replace(outputs[loss_at], role="loss")
    _check_shapes(module, inputs, outputs)

    files: dict[str, bytes] = {MODULE_FILE: module}
    init_entry = None
    if callable(init):
        init_indices = [starts[at] + n for at in state_at for n in range(len(jax.tree.leaves(arguments[at])))]
        kept_state = [(n, i) for n, i in enumerate(init_indices) if i in index_of]
        # The module lists its inputs in argument order, which need not be the order in which init returns states.
        kept_state.sort(key=lambda pair: pair[1])
        files[INIT_FILE] = _init_module(init, seed, [n for n, _ in kept_state], platform, keep_source_locations)
        init_entry = Init(INIT_FILE, "uint32", tuple(index_of[i] for _, i in kept_state))

    eval_entry = None
    if eval_step is not None:
        evaluated = jax.jit(eval_step).trace(*arguments).lower(lowering_platforms=(platform,))
        result = jax.tree.leaves(evaluated.out_info)
        if len(result) != 1 or result[0].shape != () or not np.issubdtype(result[0].dtype, np.floating):
            raise ValueError("eval_step must return one floating scalar, the held-out loss")
        used = _kept(evaluated, len(flat))
        lost = [flat[i][0].name for i in used if i not in index_of]
        if lost:
            raise ValueError(f"eval_step reads {', '.join(lost)}, which the step itself does not use")
        files[EVAL_FILE] = _module(evaluated, keep_source_locations)
        eval_entry = Eval(EVAL_FILE, tuple(index_of[i] for i in used))

    manifest = Manifest(
        name=name or folder.resolve().name,
        module=MODULE_FILE,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        init=init_entry,
        eval=eval_entry,
        data=_data(data, vocab, inputs),
        target_platforms=(platform,),
        versions={p: importlib.metadata.version(p) for p in sorted({"jax", "jaxlib", *versions_of})},
    )
    files[MANIFEST_FILE] = manifest.to_json().encode()
    _write(folder, files)
    return manifest


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


def _starts(arguments: Sequence[Any]) -> list[int]:
    """The flat index of the first leaf of each argument."""
    starts, at = [], 0
    for argument in arguments:
        starts.append(at)
        at += len(jax.tree.leaves(argument))
    return starts


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
    seed: jax.ShapeDtypeStruct,
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
    lowered = jax.jit(initial_state, keep_unused=True).trace(seed).lower(lowering_platforms=(platform,))
    return _module(lowered, keep_source_locations)


def _check_shapes(module: bytes, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    """Holds the manifest against the module itself: JAX's bookkeeping of dropped inputs is not a public interface."""
    parameters, results = wire.entry_shapes(module)
    for what, entries, shapes in (("input", inputs, parameters), ("output", outputs, results)):
        if len(entries) != len(shapes):
            raise ValueError(f"the module has {len(shapes)} {what}s, the step {len(entries)}")
        for index, (entry, (element_type, dimensions)) in enumerate(zip(entries, shapes, strict=True)):
            expected = _ELEMENT_TYPES.get(entry.dtype, element_type)
            if entry.shape != dimensions or expected != element_type:
                raise ValueError(
                    f"{what} {index} ({entry.name}) is {entry.dtype}{list(entry.shape)} in the step but has element "
                    f"type {element_type} and dimensions {list(dimensions)} in the module"
                )


def _data(kind: str | None, vocab: int | None, inputs: Sequence[Input]) -> TokenWindows | None:
    if kind is None:
        return None
    if kind not in ("bytes", "tokens"):
        raise ValueError(f"data: {kind!r} is unknown; use 'bytes' or 'tokens'")
    at = [n for n, entry in enumerate(inputs) if entry.role == "batch"]
    if len(at) != 1 or len(inputs[at[0]].shape) != 2 or not np.issubdtype(np.dtype(inputs[at[0]].dtype), np.integer):
        found = ", ".join(f"{inputs[n].name}: {inputs[n].dtype}{list(inputs[n].shape)}" for n in at)
        raise ValueError(f"data={kind!r} needs one integer batch input [batch, window]; the module has {found or 'none'}")
    if kind == "bytes" and vocab not in (None, 256):
        raise ValueError(f"data='bytes' has 256 token ids, not {vocab}")
    if kind == "tokens" and vocab is None:
        raise ValueError("data='tokens' needs vocab=, the number of token ids")
    rows, window = inputs[at[0]].shape
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
