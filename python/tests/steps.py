"""Train steps for tests, small and ordinary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH, WIDTH, HIDDEN, CLASSES = 32, 12, 16, 4


def mlp(seed=0):
    """Parameters of two layers."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "hidden": {"w": jax.random.normal(keys[0], (WIDTH, HIDDEN)) / WIDTH**0.5, "b": jnp.zeros(HIDDEN)},
        "out": {"w": jax.random.normal(keys[1], (HIDDEN, CLASSES)) / HIDDEN**0.5, "b": jnp.zeros(CLASSES)},
    }


def loss_of(params, batch):
    """Mean cross-entropy."""
    x = jax.nn.gelu(batch["x"] @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = x @ params["out"]["w"] + params["out"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def batches(count, size=BATCH, seed=1):
    """Labels that the inputs decide."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(WIDTH, CLASSES))
    for _ in range(count):
        x = rng.normal(size=(size, WIDTH)).astype(np.float32)
        yield {"x": x, "y": np.argmax(x @ teacher, axis=1).astype(np.int32)}


def train_step(tx, loss_fn=loss_of):
    """The step of the README."""

    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def same_bits(a, b):
    """Whether two trees hold the same arrays, NaNs and signs of zeros included; a tuple may be a list in the other."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(x.dtype == y.dtype and np.array_equal(_words(x), _words(y)) for x, y in zip(a, b))


def _words(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.reshape(array.shape + (1,)).view(np.uint8)
