"""Writes the steps of this folder: `PYTHONPATH=models/export python tests/corpus_mesh/export.py`, with jax and optax.

Train steps over a mesh of 8 devices, or of as many as `--devices` says, into the folder that `--out` names. Parameters are
replicated (`dp`), split along the axis of the data (`fsdp`) or along one of their own (`tp`); `manual` steps are
`shard_map`s with their own `psum`, and so is what `jax.pmap` makes (`mlp_pmap`), with a first dimension for devices.
"""

import argparse
import os
import pathlib

parser = argparse.ArgumentParser()
parser.add_argument("--devices", type=int, default=8)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
arguments = parser.parse_args()
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={arguments.devices}"

import jax
import jax.numpy as jnp
import optax
from entropic_export import wire
from jax.sharding import NamedSharding, PartitionSpec as P

DEVICES = arguments.devices
MODEL = 4 if DEVICES > 8 else 2
MESH = jax.make_mesh((DEVICES // MODEL, MODEL), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
BATCH, WIDTH, HIDDEN, CLASSES, VOCAB, LENGTH = 2 * DEVICES, 2 * DEVICES, 4 * DEVICES, 2 * DEVICES, 4 * DEVICES, 8
BOTH = ("data", "model")


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


# ------------------------------------------------------------------------------------------------------------- models

MLP = {"w1": spec(WIDTH, HIDDEN), "b1": spec(HIDDEN), "w2": spec(HIDDEN, CLASSES), "b2": spec(CLASSES)}
MLP_BATCH = (spec(BATCH, WIDTH), spec(BATCH, dtype="int32"))
MLP_SPLITS = {
    "dp": {name: P() for name in MLP},
    "fsdp": {"w1": P(BOTH, None), "b1": P(BOTH), "w2": P(BOTH, None), "b2": P(BOTH)},
    "tp": {"w1": P(None, "model"), "b1": P("model"), "w2": P("model", None), "b2": P()},
}


def mlp(params, x, y):
    h = jax.nn.gelu(x @ params["w1"] + params["b1"])
    return optax.softmax_cross_entropy_with_integer_labels(h @ params["w2"] + params["b2"], y).mean()


GPT = {
    "embed": spec(VOCAB, WIDTH),
    "qkv": spec(WIDTH, 3 * WIDTH),
    "proj": spec(WIDTH, WIDTH),
    "up": spec(WIDTH, HIDDEN),
    "down": spec(HIDDEN, WIDTH),
    "norm": spec(WIDTH),
    "head": spec(WIDTH, VOCAB),
}
GPT_BATCH = (spec(BATCH, LENGTH + 1, dtype="int32"),)
GPT_SPLITS = {
    "dp": {name: P() for name in GPT},
    "fsdp": {name: P() if name == "norm" else P(BOTH, None) for name in GPT},
    "tp": {
        "embed": P("model", None),
        "qkv": P("data", "model"),
        "proj": P("model", "data"),
        "up": P("data", "model"),
        "down": P("model", "data"),
        "norm": P(),
        "head": P("data", "model"),
    },
}


def gpt(params, tokens):
    """One layer of one head on bytes."""
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    x = params["embed"][inputs]
    q, k, v = jnp.split(x @ params["qkv"], 3, axis=-1)
    scores = jnp.einsum("btd,bsd->bts", q, k) / WIDTH**0.5
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    x = x + jnp.einsum("bts,bsd->btd", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v) @ params["proj"]
    x = x + jax.nn.gelu(x @ params["up"]) @ params["down"]
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * params["norm"]
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["head"], labels).mean()


# -------------------------------------------------------------------------------------------------------------- steps


def train_step(loss_fn, tx):
    def step(p, s, *batch):
        loss, grads = jax.value_and_grad(loss_fn)(p, *batch)
        updates, s = tx.update(grads, s, p)
        return optax.apply_updates(p, updates), s, loss

    return step


def shardings(tree):
    return jax.tree.map(lambda s: NamedSharding(MESH, s), tree, is_leaf=lambda s: isinstance(s, P))


def like_params(tx, params, splits):
    """Every state of the optimizer is split as its parameter is, scalars are not."""
    return optax.tree_map_params(tx, lambda _, split: split, jax.eval_shape(tx.init, params), splits, transform_non_params=lambda _: P())


def save(name, lowered):
    module = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
    module = wire.canonicalize(wire.strip_source_locations(module))
    (arguments.out / f"{name}.hlo.pb").write_bytes(module)


def export(name, loss_fn, tx, params, batch, splits, shardy, outputs=True):
    jax.config.update("jax_use_shardy_partitioner", shardy)
    states = like_params(tx, params, splits)
    data = tuple(P("data", *[None] * (len(b.shape) - 1)) for b in batch)
    given = {"out_shardings": shardings((splits, states, P()))} if outputs else {}
    step = jax.jit(
        train_step(loss_fn, tx), in_shardings=shardings((splits, states, *data)), donate_argnums=(0, 1), **given
    )
    save(name, step.lower(params, jax.eval_shape(tx.init, params), *batch))


def export_manual(name, reduce, shardy=True):
    """A `shard_map` of the whole step: every device has all parameters, and a part of the batch."""
    jax.config.update("jax_use_shardy_partitioner", shardy)
    tx = optax.adamw(1e-2)

    def step(p, s, *batch):
        loss, grads = jax.value_and_grad(mlp)(p, *batch)
        updates, s = tx.update(reduce(grads), s, p)
        return optax.apply_updates(p, updates), s, jax.lax.pmean(loss, BOTH)

    states = jax.eval_shape(tx.init, MLP)
    whole = jax.tree.map(lambda _: P(), (MLP, states))
    data = (P(BOTH, None), P(BOTH))
    mapped = jax.shard_map(step, mesh=MESH, in_specs=(*whole, *data), out_specs=(*whole, P()), check_vma=False)
    given = {"in_shardings": shardings((*whole, *data)), "out_shardings": shardings((*whole, P()))}
    save(name, jax.jit(mapped, donate_argnums=(0, 1), **given).lower(MLP, states, *MLP_BATCH))


def export_pmap(name):
    """A function of `jax.pmap`, every array of which has a first dimension for devices."""
    jax.config.update("jax_use_shardy_partitioner", True)
    tx = optax.adamw(1e-2)

    def step(p, s, *batch):
        loss, grads = jax.lax.pmean(jax.value_and_grad(mlp)(p, *batch), "data")
        updates, s = tx.update(grads, s, p)
        return optax.apply_updates(p, updates), s, loss

    each = jax.tree.map(lambda a: spec(DEVICES, *a.shape, dtype=a.dtype), (MLP, jax.eval_shape(tx.init, MLP)))
    data = jax.tree.map(lambda a: spec(DEVICES, a.shape[0] // DEVICES, *a.shape[1:], dtype=a.dtype), MLP_BATCH)
    save(name, jax.pmap(step, axis_name="data", donate_argnums=(0, 1)).lower(*each, *data))


def main():
    adamw = optax.adamw(1e-2)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    for shardy, suffix in [(True, ""), (False, "_gspmd")]:
        for split in ["dp", "fsdp", "tp"]:
            export(f"mlp_{split}{suffix}", mlp, adamw, MLP, MLP_BATCH, MLP_SPLITS[split], shardy)
        for split in ["fsdp", "tp"]:
            export(f"gpt_{split}{suffix}", gpt, clipped, GPT, GPT_BATCH, GPT_SPLITS[split], shardy)
    # Shardings of results are the compiler's to choose; buffers are donated without saying to which output.
    export("mlp_open", mlp, adamw, MLP, MLP_BATCH, MLP_SPLITS["tp"], True, outputs=False)
    for shardy, suffix in [(True, ""), (False, "_gspmd")]:
        export_manual(f"mlp_manual{suffix}", lambda grads: jax.lax.pmean(grads, BOTH), shardy)
    # Without their mean over `model`, devices would train parameters of their own.
    export_manual("mlp_manual_local", lambda grads: jax.lax.pmean(grads, "data"))
    export_pmap("mlp_pmap")


main()
