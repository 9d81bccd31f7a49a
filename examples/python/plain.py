"""Plain JAX: a linear model and SGD by hand, controlled by two lines."""

import entropic
import jax
import jax.numpy as jnp
import numpy as np


def loss_fn(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


@jax.jit
def train_step(params, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), loss


rng = np.random.default_rng(0)
truth = rng.normal(size=(8, 2)).astype(np.float32)
params = {"w": jnp.zeros((8, 2)), "b": jnp.zeros(2)}
x = rng.normal(size=(64, 8)).astype(np.float32)

print(entropic.inspect(train_step, (params, x, x @ truth)))
step, ctl = entropic.control(train_step, (params, x, x @ truth))
for n in range(100):
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y = x @ truth
    if n == 50:
        y[0] = np.nan  # a bad batch: the gate keeps it away from the parameters
    (params, loss), ctl, telemetry = step(ctl, params, x, y)
    if n % 10 == 0:
        print(f"{n}: loss {loss:.5f}, entropy {telemetry['global_entropy']:.3f}, norm {telemetry['global_norm']:.4f}")
print(f"refused: {int(telemetry['non_finite'])}, loss at the end: {loss:.6f}")
