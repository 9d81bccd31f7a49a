"""Writes the steps of this folder: `PYTHONPATH=models/export python tests/corpus_replicas/export.py`, with jax and optax.

Train steps of one device, each at the batch size of a replica, and those that replicas are compared with at the batch
size of all of them. `NAME_bB` has batches of B examples.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax
from entropic_export import wire

OUT = pathlib.Path(__file__).parent
WIDTH, HIDDEN, CLASSES = 16, 32, 8
KEY = jax.ShapeDtypeStruct((2,), "uint32")


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {"w1": spec(WIDTH, HIDDEN), "b1": spec(HIDDEN), "w2": spec(HIDDEN, CLASSES), "b2": spec(CLASSES)}
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(1e-2), optax.adam(1e-2))


def batch(size):
    return spec(size, WIDTH), spec(size, CLASSES)


def errors(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    return jnp.square(h @ params["w2"] + params["b2"] - y).sum(-1)


def mean_loss(params, x, y):
    return errors(params, x, y).mean()


def sum_loss(params, x, y):
    return errors(params, x, y).sum()


def masked_loss(params, x, y, mask):
    return (errors(params, x, y) * mask).sum() / mask.sum()


def update(tx, p, s, grads):
    updates, s = tx.update(grads, s, p)
    return optax.apply_updates(p, updates), s


def plain(loss_fn, tx):
    def step(params, state, *batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        params, state = update(tx, params, state, grads)
        return params, state, loss

    return step


def batchnorm(params, state, stats, seen, x, y):
    """Running statistics, a counter of examples that are all seen, and the accuracy and all predictions beside the loss."""

    def loss_fn(params):
        h = x @ params["w1"] + params["b1"]
        mean, var = h.mean(0), h.var(0)
        out = jnp.tanh((h - mean) * jax.lax.rsqrt(var + 1e-3)) @ params["w2"] + params["b2"]
        return jnp.square(out - y).sum(-1).mean(), (mean, var, out)

    (loss, (mean, var, out)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    params, state = update(CLIPPED, params, state, grads)
    hits = out.argmax(-1) == y.argmax(-1)
    return params, state, stats, seen + hits.sum(), loss, hits.mean(), out


def dropout(params, state, key, x, y):
    key, own = jax.random.split(key)

    def loss_fn(params):
        h = jnp.tanh(x @ params["w1"] + params["b1"])
        h = jnp.where(jax.random.bernoulli(own, 0.5, h.shape), h / 0.5, 0.0)
        return jnp.square(h @ params["w2"] + params["b2"] - y).sum(-1).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    params, state = update(CLIPPED, params, state, grads)
    return params, state, key, loss


def own_trust(params, scale, x, y):
    """A state of the user's own that follows the data by another way than gradients."""
    loss, grads = jax.value_and_grad(mean_loss)(params, x, y)
    scale = 0.9 * scale + 0.1 * jnp.abs(x).max()
    return jax.tree.map(lambda p, g: p - 0.1 * g / scale, params, grads), scale, loss


def save(name, step, *args, donate):
    module = jax.jit(step, donate_argnums=donate).lower(*args).compiler_ir("hlo").as_serialized_hlo_module_proto()
    (OUT / f"{name}.hlo.pb").write_bytes(wire.canonicalize(wire.strip_source_locations(module)))


def main():
    state = jax.eval_shape(CLIPPED.init, PARAMS)
    for size in [4, 8, 32]:
        save(f"mean_b{size}", plain(mean_loss, CLIPPED), PARAMS, state, *batch(size), donate=(0, 1))
    momentum = optax.sgd(1e-3, momentum=0.9)
    for size in [4, 8]:
        moments = jax.eval_shape(momentum.init, PARAMS)
        save(f"sum_b{size}", plain(sum_loss, momentum), PARAMS, moments, *batch(size), donate=(0, 1))
        masked = plain(masked_loss, CLIPPED)
        save(f"masked_b{size}", masked, PARAMS, state, *batch(size), spec(size), donate=(0, 1))
    stats = {"mean": spec(HIDDEN), "var": spec(HIDDEN)}
    counter = spec(dtype="int32")
    save("batchnorm_b4", batchnorm, PARAMS, state, stats, counter, *batch(4), donate=(0, 1, 2, 3))
    save("dropout_b4", dropout, PARAMS, state, KEY, *batch(4), donate=(0, 1, 2))
    save("own_trust_b4", own_trust, PARAMS, spec(), *batch(4), donate=(0, 1))


main()
