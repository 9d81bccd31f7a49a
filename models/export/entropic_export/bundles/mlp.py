"""`mlp`: predicts the next byte from the eight before it; embedding, one hidden layer, Adam. The smallest real step."""

import pathlib

import jax
import jax.numpy as jnp
import optax

from ..bundle import export_bundle
from ..manifest import Manifest

BATCH, CONTEXT, EMBEDDING, HIDDEN, VOCAB = 64, 8, 32, 64, 256

_adam = optax.adam(3e-3)


def _loss(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Mean cross entropy in nats per byte of `tokens[:, -1]` given `tokens[:, :-1]`."""
    x = params["embedding"][tokens[:, :-1]].reshape(tokens.shape[0], CONTEXT * EMBEDDING)
    x = jax.nn.gelu(x @ params["hidden"] + params["hidden_bias"])
    logits = x @ params["out"] + params["out_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -1]).mean()


def init(seed: jax.Array) -> tuple[dict[str, jax.Array], optax.OptState]:
    """Parameters and Adam's state from a seed."""
    embedding, hidden, out = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embedding": jax.random.normal(embedding, (VOCAB, EMBEDDING)),
        "hidden": jax.random.normal(hidden, (CONTEXT * EMBEDDING, HIDDEN)) / (CONTEXT * EMBEDDING) ** 0.5,
        "hidden_bias": jnp.zeros(HIDDEN),
        "out": jax.random.normal(out, (HIDDEN, VOCAB)) / HIDDEN**0.5,
        "out_bias": jnp.zeros(VOCAB),
    }
    return params, _adam.init(params)


def step(params: dict[str, jax.Array], opt_state: optax.OptState, tokens: jax.Array):
    """One step of Adam; returns the new parameters, the new state and the loss."""
    loss, grads = jax.value_and_grad(_loss)(params, tokens)
    updates, opt_state = _adam.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def evaluate(params: dict[str, jax.Array], opt_state: optax.OptState, tokens: jax.Array) -> jax.Array:
    """The loss on held-out windows."""
    return _loss(params, tokens)


def export(path: pathlib.Path) -> Manifest:
    """Writes the bundle."""
    tokens = jax.ShapeDtypeStruct((BATCH, CONTEXT + 1), jnp.int32)
    return export_bundle(step, init, tokens, path, name="mlp", eval_step=evaluate, data="bytes", versions_of=("optax",))
