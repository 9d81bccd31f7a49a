"""flax.nnx: the module is split into a graph and its state, and the state goes through the step."""

import entropic
import jax
import numpy as np
import optax
from flax import nnx


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 64, rngs=rngs)
        self.second = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.gelu(self.first(x)))


graph, params = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param)
tx = optax.adamw(3e-3)
opt_state = tx.init(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


rng = np.random.default_rng(0)
teacher = rng.normal(size=(16, 4))
x = rng.normal(size=(128, 16)).astype(np.float32)
y = np.argmax(x @ teacher, axis=1).astype(np.int32)

step, ctl = entropic.control(train_step, (params, opt_state, x, y))
for n in range(200):
    x = rng.normal(size=(128, 16)).astype(np.float32)
    y = np.argmax(x @ teacher, axis=1).astype(np.int32)
    (params, opt_state, loss), ctl, telemetry = step(ctl, params, opt_state, x, y)
for name, entropy in zip(step.tensors, telemetry["entropy"]):
    print(f"{name}: entropy {entropy:.3f}")
print(f"loss at the end: {loss:.4f}")
