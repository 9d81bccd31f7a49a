"""Telemetry in TensorBoard. Read a step late: what a step tells is fetched while the next one runs."""

import sys

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

tx = optax.adam(1e-2)


@jax.jit
def train_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((x @ p["w"] - y) ** 2))(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def log(writer, n, loss, telemetry):
    values = {"loss": loss, "entropy/global": telemetry["global_entropy"], "norm/global": telemetry["global_norm"]}
    values |= {f"entropy/{name}": value for name, value in zip(step.tensors, telemetry["entropy"])}
    summary = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
    writer.add_event(Event(step=n, summary=Summary(value=summary)))


rng = np.random.default_rng(0)
truth = rng.normal(size=(8, 2)).astype(np.float32)
params = {"w": jnp.zeros((8, 2))}
opt_state = tx.init(params)
x = rng.normal(size=(64, 8)).astype(np.float32)
step, ctl = entropic.control(train_step, (params, opt_state, x, x @ truth))

writer = EventFileWriter(sys.argv[1] if len(sys.argv) > 1 else "runs/tensorboard")
late = None
for n in range(100):
    x = rng.normal(size=(64, 8)).astype(np.float32)
    (params, opt_state, loss), ctl, telemetry = step(ctl, params, opt_state, x, x @ truth)
    if late:
        log(writer, *late)
    late = (n, loss, telemetry)
log(writer, *late)
writer.close()
print(f"loss at the end: {loss:.5f}")
