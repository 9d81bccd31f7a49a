"""Equinox: arrays of the module are what is trained, the rest is static."""

import entropic
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

model = eqx.nn.MLP(in_size=16, out_size=4, width_size=64, depth=2, key=jax.random.key(0))
params, static = eqx.partition(model, eqx.is_array)
tx = optax.lion(3e-4)
opt_state = tx.init(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss_fn(params):
        logits = jax.vmap(eqx.combine(params, static))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return eqx.apply_updates(params, updates), opt_state, loss


rng = np.random.default_rng(0)
teacher = rng.normal(size=(16, 4))


def batch():
    x = rng.normal(size=(128, 16)).astype(np.float32)
    return x, np.argmax(x @ teacher, axis=1).astype(np.int32)


step, ctl = entropic.control(train_step, (params, opt_state, *batch()))
for n in range(200):
    (params, opt_state, loss), ctl, telemetry = step(ctl, params, opt_state, *batch())
    if n % 40 == 0:
        print(f"{n}: loss {loss:.4f}, entropy {telemetry['global_entropy']:.3f}, applied {bool(telemetry['applied'])}")
print(f"loss at the end: {jnp.mean(loss):.4f}")
