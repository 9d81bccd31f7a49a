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


def test_pmap_is_refused_with_what_to_do():
    with pytest.raises(entropic.RefusedError, match="step comes from jax.pmap.*jax.shard_map"):
        entropic.control(jax.pmap(train_step(optax.adamw(1e-2)), axis_name="data"), ())


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
