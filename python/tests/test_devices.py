"""`control` over eight CPU devices: meshes by Shardy and GSPMD, `shard_map`, `pmap`."""

import contextlib

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from steps import batches, loss_of, mlp, same_bits, train_step

STEPS = 8


def meshes(axis_type):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))


def placed(mesh, state):
    """Hidden layer split over `model`, as in tensor parallelism; moments like their parameters."""

    def spec(path, leaf):
        name = jax.tree_util.keystr(path)
        if "hidden" in name and leaf.ndim:
            return P(*[None] * (leaf.ndim - 1), "model")
        return P("model", None) if "['out']['w']" in name else P()

    return jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(x, NamedSharding(mesh, spec(path, x))), state)


def run(plain, state, given, policy="monitor"):
    """Plain and under control, side by side; all results of all steps are compared."""
    ours, theirs = jax.tree.map(jnp.copy, state), state
    controlled, ctl = entropic.control(plain, (*state, given[0]), policy)
    for batch in given:
        *theirs, loss = plain(*theirs, batch)
        (*ours, our_loss), ctl, telemetry = controlled(ctl, *ours, batch)
        assert same_bits((ours, our_loss), (theirs, loss))
    assert telemetry["steps"] == len(given)
    return controlled, ctl, telemetry, ours


@pytest.fixture(params=["shardy", "gspmd"])
def partitioner(request):
    with contextlib.ExitStack() as stack:
        before = jax.config.jax_use_shardy_partitioner
        stack.callback(jax.config.update, "jax_use_shardy_partitioner", before)
        jax.config.update("jax_use_shardy_partitioner", request.param == "shardy")
        yield request.param


def test_a_step_over_a_mesh(partitioner):
    tx = optax.adamw(1e-2)
    mesh = meshes(AxisType.Auto)
    state = placed(mesh, (mlp(), tx.init(mlp())))
    data = NamedSharding(mesh, P("data"))
    given = [jax.device_put(batch, data) for batch in batches(STEPS)]
    plain = jax.jit(train_step(tx), donate_argnums=(0, 1))
    _, ctl, telemetry, ours = run(plain, state, given)
    assert ctl["state"].sharding.is_fully_replicated and len(ctl["state"].sharding.device_set) == 8
    alone = (mlp(), tx.init(mlp()))
    single, one = entropic.control(train_step(tx), (*alone, next(batches(1))), "monitor")
    for batch in batches(STEPS):
        (*alone, _), one, wanted = single(one, *alone, batch)
    np.testing.assert_allclose(telemetry["global_entropy"], wanted["global_entropy"], rtol=1e-4)
    assert ours[0]["hidden"]["w"].sharding.spec == P(None, "model")


def test_a_mesh_with_explicit_axes():
    tx = optax.sgd(1e-2, momentum=0.9)
    mesh = meshes(AxisType.Explicit)

    def loss_fn(params, batch):
        x = jax.nn.gelu(batch["x"] @ params["hidden"]["w"] + params["hidden"]["b"])
        return jnp.mean((x @ params["out"]["w"] - batch["y"][:, None]) ** 2)

    params = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), mlp())
    state = (params, jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), tx.init(params)))
    given = [jax.device_put(batch, NamedSharding(mesh, P("data"))) for batch in batches(STEPS)]
    with jax.set_mesh(mesh):
        run(jax.jit(train_step(tx, loss_fn)), state, given)


def test_shardings_of_the_jitted_step_are_kept():
    tx = optax.adamw(1e-2)
    mesh = meshes(AxisType.Auto)
    everywhere, data = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params = mlp()
    plain = jax.jit(
        train_step(tx), in_shardings=(everywhere, everywhere, data), out_shardings=(everywhere, everywhere, everywhere)
    )
    # Neither state nor batch is placed anywhere: the step's own shardings do it.
    controlled, _, _, ours = run(plain, (params, tx.init(params)), list(batches(STEPS)))
    assert ours[0]["out"]["w"].sharding.is_equivalent_to(everywhere, 2)


def data_parallel(tx, mesh):
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        loss, grads = jax.lax.pmean((loss, grads), "data")
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=(P(), P(), P()), check_vma=False)


def test_a_step_in_shard_map():
    tx = optax.adamw(1e-2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = mlp()
    run(jax.jit(data_parallel(tx, mesh)), (params, tx.init(params)), list(batches(STEPS)))


def per_device(tree, count=4):
    """The same on each device, as `jax.pmap` takes it."""
    return jax.tree.map(lambda x: jnp.stack([x] * count), tree)


def parts(count, devices=4):
    """Batches with a first dimension for devices."""
    for batch in batches(count):
        yield jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def parallel(tx, reduce=lambda grads: jax.lax.pmean(grads, "data")):
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = tx.update(reduce(grads), opt_state, params)
        return optax.apply_updates(params, updates), opt_state, jax.lax.pmean(loss, "data")

    return step


@pytest.mark.parametrize("policy", ["monitor", "default"])
def test_a_pmapped_step(policy):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    state = (mlp(), tx.init(mlp()))
    step, ctl, telemetry, ours = run(
        jax.pmap(parallel(tx), axis_name="data"), per_device(state), list(parts(STEPS)), policy
    )
    assert step.tensors == tuple(f"params['{layer}']['{name}']" for layer in ["hidden", "out"] for name in ["b", "w"])
    assert ours[0]["hidden"]["w"].shape == (4, *state[0]["hidden"]["w"].shape)
    # The controller is one, and every device has it.
    for leaf in jax.tree.leaves((ctl, telemetry)):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 4
        assert all(same_bits(shard.data, leaf) for shard in leaf.addressable_shards)
    single, one = entropic.control(train_step(tx), (*state, next(batches(1))), policy)
    for batch in batches(STEPS):
        (*state, _), one, wanted = single(one, *state, batch)
    np.testing.assert_allclose(telemetry["global_entropy"], wanted["global_entropy"], rtol=1e-4)
    np.testing.assert_allclose(telemetry["norm"], wanted["norm"], rtol=1e-4)


def test_a_pmapped_step_is_scaled_and_held():
    tx = optax.sgd(1e-2, momentum=0.9)
    state = per_device((mlp(), tx.init(mlp())))
    given = list(parts(STEPS))
    plain = jax.pmap(parallel(tx), axis_name="data")
    policy = {"scale": {"tensors": {"params['out']*": 0.5}}, "gate": {"norm": {"multiple": 2.5, "warmup": 2}}}
    step, ctl = entropic.control(plain, (*state, given[0]), policy)
    (ours, *_), ctl, telemetry = step(ctl, *state, given[0])
    theirs, *_ = plain(*state, given[0])
    moved = [jax.tree.map(jnp.subtract, after, state[0]) for after in (ours, theirs)]
    assert same_bits(moved[0]["hidden"], moved[1]["hidden"])
    np.testing.assert_allclose(moved[0]["out"]["w"], 0.5 * moved[1]["out"]["w"], atol=1e-7)
    assert np.abs(moved[0]["out"]["w"]).max() > 1e-5
    for batch in given[1:]:
        (*state, _), ctl, telemetry = step(ctl, *state, batch)
    # One device's part of the batch is spoilt: none of them may take the update.
    spoilt = jax.tree.map(np.copy, given[0])
    spoilt["x"][2] *= 1e4
    (*after, _), ctl, telemetry = step(ctl, *state, spoilt)
    assert telemetry["applied"] == 0 and telemetry["norm_exceeded"] == 1
    assert same_bits(after, state)


def test_a_pmapped_step_keeps_what_it_declares():
    tx = optax.adamw(1e-2)
    state = per_device((mlp(), tx.init(mlp())))
    devices = jax.devices()[3:7]
    batch = next(parts(1))

    def scaled(factor, params, opt_state, batch):
        """With a static argument, and everything that all devices have alike in arrays without a dimension for them."""
        params, opt_state, loss = parallel(tx)(params, opt_state, batch)
        return params, opt_state, factor * loss

    plain = jax.pmap(
        scaled, axis_name="data", static_broadcasted_argnums=0, devices=devices, donate_argnums=(1, 2), in_axes=(None, 0, 0, 0)
    )
    step, ctl = entropic.control(plain, (2.0, *state, batch))
    given = jax.tree.map(jnp.copy, state)
    (*ours, loss), ctl, _ = step(ctl, 2.0, *given, batch)
    assert same_bits((*ours, loss), plain(2.0, *state, batch))
    assert ours[0]["out"]["w"].sharding.device_set == ctl["state"].sharding.device_set == set(devices)
    (*again, _), ctl, _ = step(ctl, 2.0, *ours, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(ours)), "donated"
    with pytest.raises(entropic.Error, match="static arguments"):
        step(ctl, 3.0, *again, batch)


@pytest.mark.parametrize("axis", [None, 1])
def test_axes_of_a_pmapped_step(axis):
    # With weight decay in the gradient parameters must be the same on all devices for sure: without a dimension for them.
    decay = [optax.add_decayed_weights(1e-3)] if axis is None else []
    tx = optax.chain(*decay, optax.sgd(1e-2, momentum=0.9))
    state = (mlp(), tx.init(mlp()))
    if axis is not None:
        state = jax.tree.map(lambda x: jnp.stack([x] * 4, axis), state)
    given = [jax.tree.map(lambda x: np.moveaxis(x, 0, -1), batch) for batch in parts(STEPS)]
    in_axes = (axis, axis, {"x": 2, "y": 1})
    plain = jax.pmap(parallel(tx), axis_name="data", in_axes=in_axes, out_axes=(axis, axis, None))
    run(plain, state, given)


def test_pmapped_steps_that_cannot_be_controlled_say_why():
    state = per_device((mlp(), optax.sgd(1e-2).init(mlp())))
    with pytest.raises(entropic.RefusedError, match="differs from device to device.*pmean"):
        alone = jax.pmap(parallel(optax.sgd(1e-2), lambda grads: grads), axis_name="data")
        entropic.control(alone, (*state, next(parts(1))))
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1e-2))
    state = per_device((mlp(), tx.init(mlp())))
    with pytest.raises(entropic.RefusedError, match="in_axes=None, out_axes=None"):
        entropic.control(jax.pmap(parallel(tx), axis_name="data"), (*state, next(parts(1))))


def test_a_pmapped_step_can_be_looked_at():
    tx = optax.adamw(1e-2)
    state = per_device((mlp(), tx.init(mlp())))
    report = str(entropic.inspect(jax.pmap(parallel(tx), axis_name="data"), (*state, next(parts(1)))))
    assert "params['hidden']['w']" in report and "[1,12,16]" in report


def test_copies_of_states_are_split_like_the_states():
    tx = optax.adamw(1e-2)
    mesh = meshes(AxisType.Auto)
    params = mlp()
    state = placed(mesh, (params, tx.init(params)))
    given = [jax.device_put(batch, NamedSharding(mesh, P("data"))) for batch in batches(STEPS)]
    step, ctl = entropic.control(train_step(tx), (*state, given[0]), {"rollback": {"kind": "snapshot", "refresh": 2}})
    assert ctl["snapshots"]["params['hidden']['w']"].sharding.spec == P(None, "model")
    for batch in given:
        (*state, _), ctl, telemetry = step(ctl, *state, batch)
    assert telemetry["snapshots"] > 0
    assert ctl["snapshots"]["params['hidden']['w']"].sharding.spec == P(None, "model")


def test_ctl_comes_from_anywhere():
    tx = optax.adamw(1e-2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    state = (mlp(), tx.init(mlp()))
    step, ctl = entropic.control(jax.jit(data_parallel(tx, mesh)), (*state, next(batches(1))))
    loaded = jax.tree.map(np.asarray, ctl)
    one = step(ctl, *state, next(batches(1)))
    assert same_bits(one, step(loaded, *state, next(batches(1))))
