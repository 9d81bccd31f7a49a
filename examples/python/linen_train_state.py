"""flax.linen with a TrainState, an optax optimizer, dropout, and a policy of one's own."""

import entropic
import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training.train_state import TrainState


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.gelu(nn.Dense(64)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(4)(x)


@jax.jit
def train_step(state, key, x, y):
    key, dropout = jax.random.split(key)

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x, train=True, rngs={"dropout": dropout})
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), key, loss


def batches(count):
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(16, 4))
    for _ in range(count):
        x = rng.normal(size=(128, 16)).astype(np.float32)
        yield x, np.argmax(x @ teacher, axis=1).astype(np.int32)


model, key = Classifier(), jax.random.key(0)
x, y = next(batches(1))
params = model.init(key, x, train=False)["params"]
state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(3e-3))

policy = {"gate": {"norm": {"multiple": 2.5}}, "laws": {"pi": {"enabled": True}}}
step, ctl = entropic.control(train_step, (state, key, x, y), policy)
for n, (x, y) in enumerate(batches(200)):
    (state, key, loss), ctl, telemetry = step(ctl, state, key, x, y)
    if n % 40 == 0:
        print(f"{n}: loss {loss:.4f}, learning rates x {telemetry['lr_scale']:.3f}")
print(f"loss at the end: {loss:.4f}; {int(telemetry['refused_norm'])} refused")
