"""Data-parallel on many hosts: JAX's own runtime, one process for each host, state in Orbax checkpoints.

On one machine: `for n in 0 1; do python many_hosts.py localhost:9876 2 $n & done`. Under SLURM and on Kubernetes
`jax.distributed.initialize()` needs no arguments.
"""

import os
import sys

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if len(sys.argv) == 4:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
tx = optax.adamw(1e-2)


def train_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((x @ p["w"] - y) ** 2))(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def batch(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    return [jax.make_array_from_callback(a.shape, split, lambda i, a=a: a[i]) for a in (x, x[:, :2] * 3)]


init = lambda: (params := {"w": jnp.zeros((8, 2))}, tx.init(params))  # noqa: E731
state = jax.jit(init, out_shardings=everywhere)()
jitted = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=everywhere)
step, ctl = entropic.control(jitted, (*state, *batch(0)))

folder = os.path.abspath(os.environ.get("CHECKPOINTS", "runs/many-hosts"))
with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
    start = manager.latest_step() or 0
    if start:
        state, ctl = manager.restore(start, args=ocp.args.StandardRestore((tuple(state), ctl)))
    for n in range(start, 50):
        (*state, loss), ctl, telemetry = step(ctl, *state, *batch(n))
        if n % 10 == 9:
            manager.save(n + 1, args=ocp.args.StandardSave((tuple(state), ctl)))
    print(f"loss at the end: {loss:.5f}; {int(telemetry['accepted'])} steps accepted")
