"""Writes the programs of this folder: `PYTHONPATH=models/export python tests/corpus_loops/export.py`, with jax and optax.

Train steps by themselves (`NAME`), and loops over the same steps (`NAME_scan`, `NAME_fori`), which do K of them in one
launch. `bundle` and `bundle_scan` are bundles of such a pair, to train.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import optax
from entropic_export import export_bundle, wire

OUT = pathlib.Path(__file__).parent
K, BATCH, WIDTH, HIDDEN, CLASSES, LAYERS = 4, 8, 16, 32, 8, 3


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {"w1": spec(WIDTH, HIDDEN), "b1": spec(HIDDEN), "w2": spec(HIDDEN, CLASSES), "b2": spec(CLASSES)}
DEEP = {"in": spec(WIDTH, HIDDEN), "layers": spec(LAYERS, HIDDEN, HIDDEN), "out": spec(HIDDEN, CLASSES)}
ADAMW = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
BATCHES = spec(BATCH, WIDTH), spec(BATCH, CLASSES)


def error(out, y):
    return jnp.square(out - y).sum(-1).mean()


def mlp(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    return error(h @ params["w2"] + params["b2"], y)


def deep(params, x, y):
    """A model that scans over its layers."""
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ params["in"], params["layers"])
    return error(h @ params["out"], y)


def micro_batches(params, x, y):
    """Gradients that are added up over micro-batches inside the step."""
    parts = [a.reshape(2, BATCH // 2, -1) for a in (x, y)]

    def add(carry, part):
        loss, grads = jax.value_and_grad(mlp)(params, *part)
        return jax.tree.map(jnp.add, carry, (loss, grads)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), _ = jax.lax.scan(add, zero, parts)
    return jax.tree.map(lambda a: a / 2, (loss, grads))


def step_of(tx, value_and_grad):
    def step(params, state, x, y):
        loss, grads = value_and_grad(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def scanned(step):
    def several(params, state, x, y):
        def body(carry, batch):
            params, state, loss = step(*carry, *batch)
            return (params, state), loss

        (params, state), losses = jax.lax.scan(body, (params, state), (x, y))
        return params, state, losses

    return several


def in_fori_loop(step):
    def several(params, state, x, y):
        def body(i, carry):
            params, state, losses = carry
            params, state, loss = step(params, state, x[i], y[i])
            return params, state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, K, body, (params, state, jnp.zeros(K)))

    return several


def as_many_as_asked(step):
    """A loop whose number of steps is an argument."""

    def several(params, state, count, x, y):
        def body(i, carry):
            params, state, losses = carry
            params, state, loss = step(params, state, x[i], y[i])
            return params, state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, count, body, (params, state, jnp.zeros(K)))

    return several


def reports(step):
    """Besides the loss: a count, a flag, what the last batch was like, and moments that begin anew in every launch."""

    def several(params, x, y):
        def body(carry, batch):
            params, state, _ = carry
            params, state, loss = step(params, state, *batch)
            hits = (batch[0].sum(-1) > batch[1].sum(-1)).sum()
            return (params, state, batch[1].mean(0)), (loss, hits, jnp.isfinite(loss))

        (params, _, last), told = jax.lax.scan(body, (params, ADAMW.init(params), jnp.zeros(CLASSES)), (x, y))
        return params, last, *told

    return several


def save(name, step, *args, donate=(0, 1)):
    module = jax.jit(step, donate_argnums=donate).lower(*args).compiler_ir("hlo").as_serialized_hlo_module_proto()
    (OUT / f"{name}.hlo.pb").write_bytes(wire.canonicalize(wire.strip_source_locations(module)))


def stacked(specs):
    return tuple(spec(K, *s.shape, dtype=s.dtype) for s in specs)


def init(seed):
    def wave(n, shape):
        return 0.3 * jnp.sin(seed + (n + 1.7) * jnp.arange(1.0, 1.0 + math.prod(shape))).reshape(shape)

    params = {name: wave(n, s.shape) for n, (name, s) in enumerate(PARAMS.items())}
    return params, ADAMW.init(params)


def main():
    steps = {
        "adamw": (ADAMW, jax.value_and_grad(mlp), PARAMS),
        "multisteps": (optax.MultiSteps(ADAMW, 3), jax.value_and_grad(mlp), PARAMS),
        "layers": (ADAMW, jax.value_and_grad(deep), DEEP),
        "micro": (ADAMW, micro_batches, PARAMS),
    }
    for name, (tx, value_and_grad, params) in steps.items():
        step, state = step_of(tx, value_and_grad), jax.eval_shape(tx.init, params)
        save(name, step, params, state, *BATCHES)
        save(f"{name}_scan", scanned(step), params, state, *stacked(BATCHES))
    adamw, state = step_of(ADAMW, jax.value_and_grad(mlp)), jax.eval_shape(ADAMW.init, PARAMS)
    save("adamw_fori", in_fori_loop(adamw), PARAMS, state, *stacked(BATCHES))
    save("asked", as_many_as_asked(adamw), PARAMS, state, spec(dtype="int32"), *stacked(BATCHES))
    save("reports_scan", reports(adamw), PARAMS, *stacked(BATCHES), donate=(0,))
    batch = dict(zip(("x", "y"), BATCHES, strict=True))
    batches = dict(zip(("x", "y"), stacked(BATCHES), strict=True))
    for name, step, of, steps in [("bundle", adamw, batch, 1), ("bundle_scan", scanned(adamw), batches, K)]:
        export_bundle(
            lambda params, state, batch, step=step: step(params, state, batch["x"], batch["y"]),
            init,
            of,
            OUT / name,
            eval_step=lambda params, state, batch: mlp(params, batch["x"], batch["y"]),
            steps_per_launch=steps,
        )


if __name__ == "__main__":
    main()
