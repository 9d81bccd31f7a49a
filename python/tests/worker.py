"""One of several processes that train together; started by test_processes.py.

It trains the MLP on so many CPU devices in all, saves all state with Orbax after every step, and goes on from what is saved. It
writes, by step, the loss and a digest of the bits of its shards of all states and results.
"""

import argparse
import hashlib
import json
import os
import pathlib
import signal

parser = argparse.ArgumentParser()
for name in ("process", "processes", "devices", "port", "steps"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--split", choices=["data", "fsdp"], required=True)
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--checkpoints", type=pathlib.Path)
parser.add_argument("--die", type=int, help="kill the last process before this step")
parser.add_argument("--beside", action="store_true", help="only watch, and train the plain step beside it")
options = parser.parse_args()

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices // options.processes}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

if options.processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{options.port}", options.processes, options.process, heartbeat_timeout_seconds=10
    )

import entropic  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from steps import batches, mlp, train_step  # noqa: E402

mesh = jax.make_mesh((options.devices,), ("data",), axis_types=(AxisType.Auto,))


def placement(leaf):
    """Everywhere, or split along the first dimension that the devices can share."""
    split = [n for n, size in enumerate(leaf.shape) if size % options.devices == 0] if options.split == "fsdp" else []
    return NamedSharding(mesh, PartitionSpec(*[None] * split[0], "data") if split else PartitionSpec())


def digest(tree):
    """Of the bits that this process holds, by device."""
    found = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found.setdefault(str(shard.device.id), hashlib.sha256()).update(np.asarray(shard.data).tobytes())
    return {device: sha.hexdigest() for device, sha in sorted(found.items())}


tx = optax.adamw(1e-2)
init = lambda: (mlp(), tx.init(mlp()))  # noqa: E731
state = jax.jit(init, out_shardings=jax.tree.map(placement, jax.eval_shape(init)))()
data = NamedSharding(mesh, PartitionSpec("data"))
given = [
    jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, data, lambda index, x=x: x[index]), batch)
    for batch in batches(options.steps)
]
out_shardings = (*jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, PartitionSpec()))
plain = jax.jit(train_step(tx), donate_argnums=(0, 1), out_shardings=out_shardings)
laws = {"laws": {"warmup": 1, "pi": {"enabled": True}}, "target": {"first": 2, "every": 2}}
step, ctl = entropic.control(plain, (*state, given[0]), "monitor" if options.beside else laws)
beside = jax.tree.map(lambda x: x.copy(), state)

manager, first = None, 0
if options.checkpoints:
    manager = ocp.CheckpointManager(options.checkpoints, options=ocp.CheckpointManagerOptions(max_to_keep=2))
    if manager.latest_step() is not None:
        first = manager.latest_step()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, ctl))
        state, ctl = manager.restore(first, args=ocp.args.StandardRestore(like))

records = {}
for n in range(first, options.steps):
    if options.die == n and options.process == options.processes - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    (*state, loss), ctl, telemetry = step(ctl, *state, given[n])
    state = tuple(state)
    records[n] = {"loss": float(loss), "step": digest((state, loss)), "control": digest((ctl, telemetry))}
    if options.beside:
        *beside, loss = plain(*beside, given[n])
        records[n]["plain"] = digest((beside, loss))
    if manager:
        manager.save(n + 1, args=ocp.args.StandardSave((state, ctl)))
        manager.wait_until_finished()
options.out.write_text(json.dumps(records))
