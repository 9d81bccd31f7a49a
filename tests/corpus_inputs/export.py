"""Writes the files of this folder: `python tests/corpus_inputs/export.py`, with jax, optax and flatbuffers.

One small step in every format that a module comes in, and steps that are special in one way each.
"""

import os
import pathlib

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import optax
from jax import export
from jax._src import core, effects
from jax._src.interpreters import mlir
from jax.experimental import pallas
from jax.sharding import NamedSharding, PartitionSpec

FOLDER = pathlib.Path(__file__).parent

# No paths of the exporting machine.
jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")
export.register_namedtuple_serialization(optax.ScaleByAdamState, serialized_name="optax.ScaleByAdamState")
export.register_namedtuple_serialization(optax.EmptyState, serialized_name="optax.EmptyState")

ADAM = optax.adam(1e-2)


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {"w1": array(8, 16), "b1": array(16), "w2": array(16, 4)}
X, Y = array(32, 8), array(32, 4)


def mlp(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - y) ** 2)


def train_step(loss_fn, tx=ADAM):
    def step(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def write(name, content):
    (FOLDER / name).write_bytes(content.encode() if isinstance(content, str) else bytes(content))


def save(name, step, *arguments, truth=False, **options):
    jitted = jax.jit(step, donate_argnums=(0, 1))
    exported = export.export(jitted, **options)(*arguments)
    write(f"{name}.jax_export", exported.serialize())
    if truth:
        lowered = jitted.lower(*arguments)
        write(f"{name}.hlo.pb", lowered.compiler_ir("hlo").as_serialized_hlo_module_proto())
        return lowered, exported


def adam(params):
    return params, jax.eval_shape(ADAM.init, params)


def formats():
    """The step of all formats."""
    lowered, exported = save("mlp", train_step(mlp), *adam(PARAMS), X, Y, truth=True)
    write("mlp.mlir", lowered.as_text())
    write("mlp.mlirbc", exported.mlir_module_serialized)


def platforms():
    """A loop, and code that differs by platform: a QR decomposition is LAPACK's or cuSOLVER's."""

    def scanned(params, x, y):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ params["w1"], params["ws"])
        return jnp.mean((h @ params["w2"] - y) ** 2)

    params = {"w1": array(8, 16), "ws": array(3, 16, 16), "w2": array(16, 4)}
    save("platforms", train_step(scanned), *adam(params), X, Y, truth=True, platforms=["cuda", "cpu"])

    def orthogonal(params, x, y):
        q, _ = jnp.linalg.qr(x @ params["w1"])
        return jnp.mean((q @ params["w2"] + params["b1"][:4] - y) ** 2)

    save("qr", train_step(orthogonal), *adam(PARAMS), X, Y, platforms=["cpu", "cuda"])


def custom_calls():
    """Kernels of one platform."""

    def double(x):
        def kernel(x_ref, o_ref):
            o_ref[...] = x_ref[...] * 2.0

        return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    doubled = jax.custom_vjp(double)
    doubled.defvjp(lambda x: (double(x), None), lambda _, g: (double(g),))

    def loss_fn(params, x, y):
        return jnp.mean((doubled(x @ params["w1"]) @ params["w2"] + params["b1"][:4] - y) ** 2)

    save("pallas_tpu", train_step(loss_fn), *adam(PARAMS), X, Y, platforms=["tpu"])

    def whitened(params, x, y):
        a = x @ params["w1"]
        return jnp.mean((a @ jnp.linalg.cholesky(a.T @ a + jnp.eye(16)) @ params["w2"] - y) ** 2)

    params = {"w1": PARAMS["w1"], "w2": PARAMS["w2"]}
    save("cholesky_cuda", train_step(whitened), *adam(params), X, Y, platforms=["cuda"])


def element_types():
    """Small floats as states, doubles, and a typed random key."""

    def fp8(params, trace, x, y):
        def loss_fn(params, x, y):
            h = jax.lax.dot(x.astype(jnp.float8_e4m3fn), params["w1"], preferred_element_type=jnp.float32)
            return jnp.mean((jnp.tanh(h + params["b1"]) @ params["w2"] - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        trace = jax.tree.map(lambda m, g: 0.9 * m.astype("float32") + g.astype("float32"), trace, grads)
        params = jax.tree.map(lambda p, m: (p.astype("float32") - 0.1 * m).astype(p.dtype), params, trace)
        return params, jax.tree.map(lambda m: m.astype(jnp.float8_e5m2), trace), loss

    params = PARAMS | {"w1": array(8, 16, dtype=jnp.float8_e4m3fn)}
    save("fp8", fp8, params, jax.tree.map(lambda p: array(*p.shape, dtype=jnp.float8_e5m2), PARAMS), X, Y)

    def noisy(params, opt_state, key, x, y):
        step = train_step(lambda params, x, y: mlp(params, x + jax.random.normal(key, x.shape), y))
        return *step(params, opt_state, x, y), jax.random.split(key)[0]

    save("key", noisy, *adam(PARAMS), jax.eval_shape(lambda: jax.random.key(0)), X, Y)

    jax.config.update("jax_enable_x64", True)
    params = jax.tree.map(lambda p: array(*p.shape, dtype="float64"), PARAMS)
    save("x64", train_step(mlp), *adam(params), array(32, 8, dtype="float64"), array(32, 4, dtype="float64"))
    jax.config.update("jax_enable_x64", False)


def signatures():
    """Arguments that the module does not take, or takes in another way."""

    def unused(params, opt_state, x, y, z, *, flag):
        return train_step(mlp)(params, opt_state, x, y)

    exported = export.export(jax.jit(unused, donate_argnums=(0, 1)))(*adam(PARAMS), X, Y, array(3), flag=array())
    assert len(exported.module_kept_var_idx) < len(exported.in_avals), "unused arguments are dropped"
    write("unused.jax_export", exported.serialize())

    (rows,) = export.symbolic_shape("rows")
    save("symbolic", train_step(mlp), *adam(PARAMS), array(rows, 8), array(rows, 4))

    mesh = jax.make_mesh((8,), ("data",))
    place = lambda spec: lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
    state = jax.tree.map(place(PartitionSpec()), adam(PARAMS))
    save("mesh", train_step(mlp), *state, *map(place(PartitionSpec("data")), (X, Y)))


class OrderedEffect(effects.Effect):
    """An effect in order; JAX's own are callbacks, which cannot be exported."""

    __eq__ = lambda self, other: type(self) is type(other)
    __hash__ = lambda self: 1


def ordered_effects():
    for kind in (effects.lowerable_effects, effects.ordered_effects, effects.custom_derivatives_allowed_effects):
        kind.add_type(OrderedEffect)
    effect = OrderedEffect()
    primitive = core.Primitive("in_order")
    primitive.def_effectful_abstract_eval(lambda x: (x, {effect}))

    def lowering(ctx, x):
        ctx.set_tokens_out(mlir.TokenSet({effect: ctx.tokens_in.get(effect)}))
        return [x]

    mlir.register_lowering(primitive, lowering)

    def step(params, opt_state, x, y):
        params, opt_state, loss = train_step(mlp)(params, opt_state, x, y)
        return params, opt_state, primitive.bind(loss)

    save("ordered", step, *adam(PARAMS), X, Y)


if __name__ == "__main__":
    formats()
    platforms()
    custom_calls()
    element_types()
    signatures()
    ordered_effects()
