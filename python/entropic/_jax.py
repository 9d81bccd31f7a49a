"""Out of JAX and back: a function becomes a module, a module becomes a function.

`lower` traces and lowers a function once and says everything about it that a caller of the module needs. `call` is the way
back: a primitive whose lowering puts a module, as a function of its own, into whatever program calls it, so that all that JAX
does with a function (compilation, sharding, several processes, control flow around it) is done by JAX.

All that this package takes from JAX beyond its documented interface is in this file.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive, jaxprs_in_params
from jax.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import func
from jaxlib.mlir.dialects import stablehlo as stablehlo_dialect

from ._native import Error, RefusedError

try:
    from jaxlib._jax.mlir import hlo_to_stablehlo
except ImportError as error:
    raise ImportError(
        f"this release of entropic does not know jaxlib {jax.__version__}; install a release of jax within the range that its "
        "package asks for"
    ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """The arguments of a jitted function that are part of the program: positions, and names where they are given by name."""

    positions: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def split(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
        """Positional arguments and those by name, without static ones; and the static ones."""
        if not self.positions and not self.names:
            return tuple(args), dict(kwargs), []
        at = {n % len(args) if -len(args) <= n < 0 else n for n in self.positions}
        static = [args[n] for n in sorted(at) if n < len(args)]
        static += [kwargs[name] for name in sorted(self.names) if name in kwargs]
        positional = tuple(value for n, value in enumerate(args) if n not in at)
        return positional, {name: value for name, value in kwargs.items() if name not in self.names}, static


@dataclasses.dataclass(frozen=True, eq=False)
class Lowered:
    """A function as a module, and how the module is called. Sequences are per leaf of the arguments or the results.

    Attributes:
      name: the function's.
      module: a serialized `HloModuleProto`.
      platform: what it was lowered for.
      static: which arguments are part of the program.
      static_values: what those were.
      in_tree: the tree of `(args, kwargs)` without static arguments.
      in_avals: shape and dtype of each leaf.
      in_names: path of each leaf as JAX prints it.
      donated: whether the caller gives the leaf's buffer away.
      kept: the leaves that the module takes, by number; nothing reads the others.
      in_shardings: as the caller of `jax.jit` gave them, layouts included; None where they were left open.
      settled_shardings: those of `kept`, as lowering settled them, by number of the leaf.
      out_tree, out_avals, out_names, out_shardings: likewise for the results.
      successors: by number of a leaf of the results, that of the parameter of the module whose next value it is, as far as
        arguments and results say that by being trees of one kind.
      devices: those that the module runs on.
      mesh: the mesh over them that the function uses, if it uses one.
      compiler_options: as the caller of `jax.jit` gave them.
      controlled: whether a controlled step is called in it.
    """

    name: str
    module: bytes
    platform: str
    static: Static
    static_values: list[Any]
    in_tree: Any
    in_avals: tuple[Any, ...]
    in_names: tuple[str, ...]
    donated: tuple[bool, ...]
    kept: tuple[int, ...]
    in_shardings: tuple[Any, ...]
    settled_shardings: Mapping[int, Any]
    out_tree: Any
    out_avals: tuple[Any, ...]
    out_names: tuple[str, ...]
    out_shardings: tuple[Any, ...]
    successors: Mapping[int, int]
    devices: tuple[Any, ...]
    mesh: Any
    compiler_options: dict[str, Any] | None
    controlled: bool


def lower(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lowered:
    """Traces and lowers a function for arguments like these: arrays, numbers, `jax.ShapeDtypeStruct`s.

    Raises:
      RefusedError: the function does what a module cannot hold.
    """
    name = getattr(function, "__name__", type(function).__name__)
    traced, in_tree, names, static = (_trace_pmapped if _is_pmapped(function) else _trace)(function, args, kwargs)
    lowered = traced.lower()
    details, parameters = lowered._lowering.compile_args, traced._params
    if details["host_callbacks"] or details["keepalive"] or details["ordered_effects"]:
        raise RefusedError(
            f"{name} calls back into Python (jax.debug.print, io_callback, pure_callback); such a call cannot leave the program "
            "and come back. Return what it reads, and print it outside of the step"
        )
    if details.get("mut"):
        raise RefusedError(f"{name} changes a jax.Ref from outside; pass its value in and return the new one")
    if getattr(lowered._lowering, "const_args", None):
        raise RefusedError(f"{name} holds constants outside of its program; set jax_use_simplified_jaxpr_constants to False")
    in_avals = tuple(info._aval for info in jax.tree.leaves(traced.args_info, is_leaf=_is_info))
    kept = tuple(sorted(details["kept_var_idx"]))
    settled = dict(zip(kept, map(_sharding, details["in_shardings"]), strict=True))
    out_settled = [_sharding(s) for s in details["out_shardings"]]
    devices = tuple(lowered._lowering._device_list)
    debug = traced.jaxpr.jaxpr.debug_info
    return Lowered(
        name=name,
        module=lowered.compiler_ir("hlo").as_serialized_hlo_module_proto(),
        platform=lowered._lowering._platforms[0],
        static=static,
        static_values=static.split(args, kwargs)[2],
        in_tree=in_tree,
        in_avals=in_avals,
        in_names=names,
        donated=tuple(info.donated for info in jax.tree.leaves(traced.args_info, is_leaf=_is_info)),
        kept=kept,
        in_shardings=_formats(parameters["in_shardings"], parameters["in_layouts"]),
        settled_shardings=settled,
        out_tree=traced.out_tree,
        out_avals=tuple(traced.jaxpr.out_avals),
        out_names=tuple(debug.safe_result_paths(len(traced.jaxpr.out_avals))),
        out_shardings=_formats(parameters["out_shardings"], parameters["out_layouts"]),
        successors=_successors(in_tree, in_avals, traced.out_tree, tuple(traced.jaxpr.out_avals), kept),
        devices=devices,
        mesh=_mesh([*settled.values(), *out_settled], len(devices)),
        compiler_options=dict(parameters["compiler_options_kvs"]) or None,
        controlled=_calls_controlled(traced.jaxpr.jaxpr),
    )


class _Traced(NamedTuple):
    """A traced function; the tree of its arguments without static ones, paths of their leaves, and which are static."""

    traced: Any
    in_tree: Any
    in_names: tuple[str, ...]
    static: Static


def _trace(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Traced:
    jitted: Any = function if hasattr(function, "trace") else jax.jit(function)
    traced = jitted.trace(*args, **kwargs)
    info = getattr(jitted, "_jit_info", None)
    static = Static(frozenset(info.static_argnums), frozenset(info.static_argnames)) if info else Static()
    return _Traced(traced, traced.in_tree, _arg_names(traced), static)


def _arg_names(traced: Any) -> tuple[str, ...]:
    leaves = len(jax.tree.leaves(traced.args_info, is_leaf=_is_info))
    return tuple(traced.jaxpr.jaxpr.debug_info.safe_arg_names(leaves))


def _is_pmapped(function: Callable[..., Any]) -> bool:
    return hasattr(function, "lower") and not hasattr(function, "trace") and hasattr(function, "__wrapped__")


def _trace_pmapped(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Traced:
    """A function of `jax.pmap` as what it is made into: `jax.jit` of a `shard_map`, which takes leaves.

    That has shardings and donation, and is found in what the function closes over alone.
    """
    if jax.process_count() > 1:
        raise RefusedError(
            f"{function.__name__} comes from jax.pmap, which takes and returns each process's part of arrays, and a controlled step "
            "takes whole ones; with several processes use jax.shard_map, into which pmap is translated anyway"
        )
    try:
        infer = inspect.getclosurevars(function.lower).nonlocals["infer_params"]  # type: ignore[attr-defined]
        positions = inspect.getclosurevars(infer).nonlocals["static_broadcasted_tuple"]
    except KeyError as error:
        raise RefusedError(
            f"{function.__name__} comes from jax.pmap of a jax {jax.__version__} that this release of entropic does not know; use "
            "jax.shard_map, into which pmap is translated anyway"
        ) from error
    _, jitted, leaves, in_tree, *_ = infer(*args, **kwargs)

    @functools.wraps(inspect.unwrap(function))
    def named(*args: Any, **kwargs: Any) -> None:
        """The step's arguments, and nothing done with them: tracing it gives their names."""

    names = _arg_names(jax.jit(named, static_argnums=positions).trace(*args, **kwargs))
    return _Traced(jitted.trace(*leaves), in_tree, names, Static(frozenset(positions)))


def stablehlo(module: bytes) -> bytes:
    """A serialized `HloModuleProto` as StableHLO."""
    return hlo_to_stablehlo(module)


def call(program: "Program", *arrays: Any) -> list[Any]:
    """Calls a program, one array for each of its parameters; returns one for each of its results."""
    return _call_p.bind(*arrays, program=program)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A module that JAX functions can call.

    Attributes:
      name: for errors and for the name of the function in the calling program.
      stablehlo: the module.
      devices: how many it runs on.
      in_avals, in_names: shape and dtype of each parameter, and what errors call it.
      out_avals: those of each result.
      controlled: whether a controller is in it.
    """

    name: str
    stablehlo: bytes
    devices: int
    in_avals: tuple[Any, ...]
    in_names: tuple[str, ...]
    out_avals: tuple[Any, ...]
    controlled: bool = False


_call_p = Primitive("entropic_call")
_call_p.multiple_results = True


@_call_p.def_abstract_eval
def _results(*avals: Any, program: Program) -> Sequence[Any]:
    for name, given, wanted in zip(program.in_names, avals, program.in_avals, strict=True):
        if given.shape != wanted.shape or given.dtype != wanted.dtype:
            raise Error(
                f"{program.name}: {name} is {given.dtype}{list(given.shape)}, and the step was lowered for "
                f"{wanted.dtype}{list(wanted.shape)}; for arguments of other shapes or dtypes, call entropic again with those"
            )
    return program.out_avals


def _lower_call(context: Any, *values: Any, program: Program) -> Sequence[Any]:
    around = context.module_context
    axes = around.axis_context
    devices = axes.num_devices if hasattr(axes, "num_devices") else axes.mesh.size
    if devices != program.devices and program.devices != 1:
        raise Error(
            f"{program.name} was lowered for {program.devices} devices and is called in a program for {devices}; place its "
            "arguments on the same devices as those it was lowered for"
        )
    module = ir.Module.parse(program.stablehlo, context=around.module.context)
    with module.context:
        _join_broadcasts(module)
        attributes = module.operation.attributes
        if "mhlo.frontend_attributes" in attributes and "xla.sdy.meshes" in str(attributes["mhlo.frontend_attributes"]):
            # HLO carries Shardy's operations as attributes.
            passes = "xla-sdy-round-trip-import-shardy-attrs,sdy-lift-inlined-meshes"
            passmanager.PassManager.parse(f"builtin.module({passes})").run(module.operation)
    results = ir.SymbolTable(module.operation)["main"].type.results
    name = mlir.merge_mlir_modules(around.module, f"entropic_{program.name}", module, dst_symtab=around.symbol_table)
    return func.CallOp(results, ir.FlatSymbolRefAttr.get(name), list(values)).results


mlir.register_lowering(_call_p, _lower_call)


def _join_broadcasts(module: Any) -> None:
    """Makes one operation again of what HLO has three for: a broadcast along dimensions of size 1.

    HLO cannot say it, and holds a broadcast that changes nothing, a reshape that drops the dimensions, and a broadcast that adds
    them. Left alone, the first two are folded away on the way back into HLO, XLA fuses other operations with one another than in
    the step as it was, and the last bits of sums change.
    """
    found = []

    def visit(operation: Any) -> Any:
        if operation.name == "stablehlo.broadcast_in_dim":
            squeeze = _made_by(operation.operands[0], "stablehlo.reshape")
            idle = _made_by(squeeze.operands[0], "stablehlo.broadcast_in_dim") if squeeze else None
            if idle and idle.operands[0].type == idle.results[0].type:
                found.append((operation, squeeze, idle))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for broadcast, squeeze, idle in found:
        operand, result = idle.operands[0], broadcast.results[0]
        added = list(ir.DenseI64ArrayAttr(broadcast.attributes["broadcast_dimensions"]))
        dimensions = _placed(operand.type.shape, squeeze.results[0].type.shape, added, result.type.shape)
        if dimensions is None:
            continue
        with ir.InsertionPoint(broadcast), broadcast.location:
            joined = stablehlo_dialect.broadcast_in_dim(result.type, operand, ir.DenseI64ArrayAttr.get(dimensions))
        result.replace_all_uses_with(joined)
        broadcast.erase()
        for unused in (squeeze, idle):
            if not list(unused.results[0].uses):
                unused.erase()


def _made_by(value: Any, name: str) -> Any:
    """The operation that a value comes from, if it is of that kind."""
    return None if isinstance(value.owner, ir.Block) or value.owner.name != name else value.owner


def _placed(shape: Sequence[int], kept: Sequence[int], places: Sequence[int], result: Sequence[int]) -> list[int] | None:
    """A dimension of a result for each of an operand, in order, where those that are `kept` have their places, and each of the
    others, of size 1, goes along one that is larger; None where there is no such place."""
    dimensions: list[int] = []
    open_ = list(zip(kept, places, strict=True))
    for size in shape:
        if open_ and open_[0][0] == size:
            dimensions.append(open_.pop(0)[1])
            continue
        start = dimensions[-1] + 1 if dimensions else 0
        end = open_[0][1] if open_ else len(result)
        place = next((n for n in range(start, end) if result[n] != 1), None)
        if size != 1 or place is None:
            return None
        dimensions.append(place)
    return None if open_ else dimensions


def _calls_controlled(jaxpr: Any) -> bool:
    """Whether a controlled step is called in a program, at any depth."""
    if any(equation.primitive is _call_p and equation.params["program"].controlled for equation in jaxpr.eqns):
        return True
    return any(_calls_controlled(inner) for equation in jaxpr.eqns for inner in jaxprs_in_params(equation.params))


class _Subtree(NamedTuple):
    """A part of a tree: its kind, and its leaves by number."""

    kind: Any
    leaves: range
    tree: Any

    @staticmethod
    def of(tree: Any, avals: Sequence[Any], start: int = 0) -> "_Subtree":
        leaves = range(start, start + tree.num_leaves)
        return _Subtree((tree, tuple((avals[n].shape, avals[n].dtype) for n in leaves)), leaves, tree)

    def children(self, avals: Sequence[Any]) -> list["_Subtree"]:
        """Those that are trees themselves: a single array says nothing by its kind."""
        children, start = [], self.leaves.start
        for child in self.tree.children():
            if child.num_leaves and not jax.tree_util.treedef_is_leaf(child):
                children.append(_Subtree.of(child, avals, start))
            start += child.num_leaves
        return children


def _successors(
    in_tree: Any, in_avals: Sequence[Any], out_tree: Any, out_avals: Sequence[Any], kept: Sequence[int]
) -> dict[int, int]:
    """Results that succeed arguments because they are trees of one kind, largest first.

    An optimizer may keep what owes nothing to what was kept before it (the last gradient), which no graph tells from data. Where
    there are more trees of a kind on one side than on the other, nothing is said.
    """
    results, at = [_Subtree.of(out_tree, out_avals)], 0
    while at < len(results):
        results += results[at].children(out_avals)
        at += 1
    position = {leaf: n for n, leaf in enumerate(kept)}
    successors: dict[int, int] = {}
    open_ = [_Subtree.of(in_tree, in_avals)]
    while open_:
        size = max(len(subtree.leaves) for subtree in open_)
        level = [subtree for subtree in open_ if len(subtree.leaves) == size]
        open_ = [subtree for subtree in open_ if len(subtree.leaves) < size]
        for kind in dict.fromkeys(subtree.kind for subtree in level):
            ours = [subtree for subtree in level if subtree.kind == kind]
            theirs = [s for s in results if s.kind == kind and successors.keys().isdisjoint(s.leaves)]
            if not theirs:
                open_ += [child for subtree in ours for child in subtree.children(in_avals)]
            elif len(theirs) == len(ours):
                for before, after in zip(ours, theirs):
                    successors |= {o: i for i, o in zip(before.leaves, after.leaves)}
    return {o: position[i] for o, i in successors.items() if i in position}


def _is_info(value: Any) -> bool:
    return hasattr(value, "donated")


def _sharding(value: Any) -> Any:
    """None where JAX left it open."""
    return value if isinstance(value, jax.sharding.Sharding) else None


def _formats(shardings: Sequence[Any], layouts: Sequence[Any]) -> tuple[Any, ...]:
    """What `jax.jit` takes for them."""

    def one(sharding: Any, layout: Any) -> Any:
        return _sharding(sharding) if layout is None else jax.experimental.layout.Format(layout, _sharding(sharding))

    return tuple(map(one, shardings, layouts))


def _mesh(shardings: Sequence[Any], devices: int) -> Any:
    """The first mesh over all devices."""
    for sharding in shardings:
        if isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.size == devices > 1:
            return sharding.mesh
    return None
