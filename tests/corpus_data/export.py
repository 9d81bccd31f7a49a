"""The bundles of this folder: a step whose batch is no text, at two sizes.

    PYTHONPATH=models/export python tests/corpus_data/export.py

`classifier` is a linear softmax classifier of points under AdamW, whose batch is a dictionary: 16 points
`batch['point']`, float32 of 4 numbers each, and their classes `batch['label']`. `classifier-64` takes 64 of them in a
step, and is the same otherwise. Nothing says how to make a batch.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax
from entropic_export import export_bundle

TX = optax.adamw(0.05)


def init(seed):
    params = {"w": 0.1 * jax.random.normal(jax.random.key(seed), (4, 3)), "b": jnp.zeros(3)}
    return params, TX.init(params)


def loss(params, batch):
    logits = batch["point"] @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def step(params, opt_state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def evaluate(params, opt_state, batch):
    return loss(params, batch)


for name, rows in [("classifier", 16), ("classifier-64", 64)]:
    batch = {"point": jax.ShapeDtypeStruct((rows, 4), "float32"), "label": jax.ShapeDtypeStruct((rows,), "int32")}
    export_bundle(step, init, batch, pathlib.Path(__file__).parent / name, eval_step=evaluate, versions_of=["optax"])
