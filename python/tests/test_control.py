"""`control` on one device: neutral to the bit, donating, and refusing with a reason."""

import functools

import entropic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import batches, loss_of, mlp, same_bits, train_step

STEPS = 20


def start(tx):
    params = mlp()
    return params, tx.init(params)


def neutral(step, state):
    """Runs a step plain and under a policy that changes nothing, and compares all results of all steps."""
    plain = jax.jit(step)
    controlled, ctl = entropic.control(plain, (*state, next(batches(1))), "monitor")
    ours = theirs = state
    for batch in batches(STEPS):
        *theirs, loss = plain(*theirs, batch)
        (*ours, our_loss), ctl, telemetry = controlled(ctl, *ours, batch)
        assert same_bits((ours, our_loss), (theirs, loss))
    return controlled, ctl, telemetry


def test_a_step_that_is_only_watched_keeps_every_bit():
    tx = optax.adamw(1e-2)
    step, ctl, telemetry = neutral(train_step(tx), start(tx))
    assert step.tensors == tuple(f"params['{a}']['{b}']" for a in ("hidden", "out") for b in ("b", "w"))
    assert telemetry["steps"] == STEPS and ctl["counters"][0] == STEPS
    assert telemetry["entropy"].shape == (4,) and 0 < telemetry["global_entropy"] < 1
    assert set(ctl) == {"policy", "state", "counters"}


def test_telemetry_is_that_of_the_gradient():
    tx = optax.adamw(1e-2)
    params, opt_state = start(tx)
    batch = next(batches(1))
    step, ctl = entropic.control(train_step(tx), (params, opt_state, batch))
    _, _, telemetry = step(ctl, params, opt_state, batch)
    grads = jax.tree.leaves(jax.grad(loss_of)(params, batch))
    norms = [np.linalg.norm(np.asarray(g, np.float64)) for g in grads]
    np.testing.assert_allclose(telemetry["norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(telemetry["global_norm"], np.linalg.norm(norms), rtol=1e-5)
    shares = [np.square(np.asarray(g, np.float64)).ravel() / n**2 for g, n in zip(grads, norms, strict=True)]
    entropies = [-np.sum(p * np.log(np.where(p > 0, p, 1))) / np.log(p.size) for p in shares]
    np.testing.assert_allclose(telemetry["entropy"], entropies, atol=1e-5)
    assert telemetry["applied"] == 1 and telemetry["finite"] == 1


def test_a_bad_batch_is_refused_and_the_run_goes_on():
    tx = optax.adamw(1e-2)
    state = start(tx)
    step, ctl = entropic.control(train_step(tx), (*state, next(batches(1))))
    for n, batch in enumerate(batches(6)):
        if n == 3:
            batch["x"][0, 0] = np.nan
        before = jax.tree.map(np.asarray, state)
        (*state, _), ctl, telemetry = step(ctl, *state, batch)
        assert bool(telemetry["applied"]) == (n != 3)
        assert same_bits(before, state) == (n == 3)
    assert telemetry["non_finite"] == 1 and telemetry["accepted"] == 5


POLICIES = {
    "norm gate": {"gate": {"norm": {"enabled": True, "multiple": 3.0}}},
    "entropy gate": {"gate": {"entropy": {"enabled": True, "warmup": 1}}},
    "micro": {"laws": {"warmup": 1, "micro": {"enabled": True, "min_elements": 1, "min_rank": 1}}},
    "rule": {"laws": {"warmup": 1, "rule": {"enabled": True}}},
    "pi, delayed": {"laws": {"warmup": 1, "timing": "delayed", "pi": {"enabled": True}}},
    "pi, sync": {"laws": {"warmup": 1, "timing": "sync", "pi": {"enabled": True}}},
    "rollback": {"rollback": {"kind": "snapshot", "refresh": 2}},
    "switch": {"switch": {"enabled": True, "trigger": "step", "step": 4}},
    "momentum": {"momentum": {"scale": 0.5}},
    "scale": {"scale": {"global": 0.5}},
    "softmax": {"entropy": {"estimator": "softmax", "temperature_unit": "rms"}},
    "histogram": {"entropy": {"estimator": "histogram"}},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_every_policy_runs(policy):
    tx = optax.adamw(1e-2)
    state = start(tx)
    step, ctl = entropic.control(train_step(tx), (*state, next(batches(1))), policy)
    losses = []
    for batch in batches(30):
        (*state, loss), ctl, telemetry = step(ctl, *state, batch)
        losses.append(float(loss))
    assert telemetry["applied"] == 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    if "switch" in policy:
        assert telemetry["switched"] == 1
    if "rollback" in policy:
        assert telemetry["snapshots"] > 0 and "params['out']['w']" in ctl["snapshots"]


def test_a_scale_scales_what_is_added():
    tx = optax.sgd(0.5)
    params, opt_state = start(tx)
    batch = next(batches(1))
    step, ctl = entropic.control(train_step(tx), (params, opt_state, batch), {"scale": {"global": 0.5}})
    (halved, _, _), _, telemetry = step(ctl, params, opt_state, batch)
    grads = jax.grad(loss_of)(params, batch)
    expected = jax.tree.map(lambda p, g: p - 0.25 * g, params, grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), halved, expected)
    assert np.all(telemetry["scale"] == 0.5)


def test_numbers_of_a_policy_change_without_compiling():
    tx = optax.sgd(0.5)
    params, opt_state = start(tx)
    batch = next(batches(1))
    step, ctl = entropic.control(train_step(tx), (params, opt_state, batch), {"scale": {"global": 0.5}})
    _, ctl, _ = step(ctl, params, opt_state, batch)
    ctl = step.retune(ctl, {"scale": {"global": 0.25}})
    _, ctl, telemetry = step(ctl, params, opt_state, batch)
    assert np.all(telemetry["scale"] == 0.25)
    with pytest.raises(entropic.PolicyError, match="momentum"):
        step.retune(ctl, {"momentum": {"scale": 0.5}})


def test_a_policy_comes_from_a_path_a_name_or_a_dict(tmp_path):
    tx = optax.adamw(1e-2)
    args = (*start(tx), next(batches(1)))
    path = tmp_path / "policy.toml"
    path.write_text("[gate.norm]\nmultiple = 2.5\n")
    from_path, one = entropic.control(train_step(tx), args, path)
    _, two = entropic.control(train_step(tx), args, {"gate": {"norm": {"multiple": 2.5}}})
    _, three = entropic.control(train_step(tx), args, str(path))
    assert same_bits(one, two) and same_bits(one, three)
    _, default = entropic.control(train_step(tx), args)
    assert not same_bits(one["policy"], default["policy"])
    assert from_path.layout["gated"]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"gate": {"nrm": {}}}, "gate.nrm.*norm"),
        ({"entropy": {"estimator": "entropy"}}, "estimator"),
        ({"gate": {"norm": {"multiple": None}}}, "TOML"),
        ({"gate": {"norm": {"multiple": object()}}}, "TOML"),
        ("no-such-policy.toml", "no-such-policy.toml.*default, monitor, article"),
        ({"scale": {"tensors": {"no such tensor": 2.0}}}, "no such tensor"),
    ],
)
def test_a_policy_that_is_none_is_refused(policy, text):
    tx = optax.adamw(1e-2)
    with pytest.raises(entropic.PolicyError, match=f"(?s){text}"):
        entropic.control(train_step(tx), (*start(tx), next(batches(1))), policy)


def test_donated_state_stays_donated_and_memory_is_that_of_the_plain_step_and_ctl():
    tx = optax.adamw(1e-2)
    state = start(tx)
    batch = next(batches(1))
    plain = jax.jit(train_step(tx), donate_argnums=(0, 1))
    step, ctl = entropic.control(plain, (*state, batch))
    before = plain.lower(*state, batch).compile().memory_analysis()
    after = step.lower(ctl, *state, batch).compile().memory_analysis()

    def peak(memory):
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return held + memory.temp_size_in_bytes

    own = sum(leaf.nbytes for leaf in jax.tree.leaves(ctl))
    assert after.alias_size_in_bytes >= before.alias_size_in_bytes + own
    told = 4 * sum(field["len"] for field in step.layout["telemetry"])
    # One pointer in the table of outputs for each of ctl's arrays and telemetry's.
    assert peak(after) <= peak(before) + own + told + 64 * len(step.layout["telemetry"])
    (*_, _), new_ctl, _ = step(ctl, *state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state, ctl)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new_ctl))


def test_what_was_not_donated_is_not():
    tx = optax.adamw(1e-2)
    state = start(tx)
    batch = next(batches(1))
    step, ctl = entropic.control(train_step(tx), (*state, batch))
    step(ctl, *state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_specs_are_enough():
    tx = optax.adamw(1e-2)
    state = start(tx)
    batch = next(batches(1))
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (*state, batch))
    step, ctl = entropic.control(train_step(tx), specs)
    _, _, telemetry = step(ctl, *state, batch)
    assert telemetry["applied"] == 1


def test_static_arguments_and_arguments_by_name():
    tx = optax.adamw(1e-2)
    state = start(tx)
    batch = next(batches(1))

    @functools.partial(jax.jit, static_argnums=2, static_argnames="smooth", donate_argnames="opt_state")
    def step(params, opt_state, kind, *, batch, smooth=0.0):
        assert kind == "train"
        (loss, aux), grads = jax.value_and_grad(lambda p: (loss_of(p, batch) + smooth, {"n": batch["x"].sum()}), has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return {"params": optax.apply_updates(params, updates), "opt": opt_state}, (loss, aux)

    kwargs = {"batch": batch, "smooth": 0.5}
    controlled, ctl = entropic.control(step, (*state, "train"), "monitor", example_kwargs=kwargs)
    (new, (loss, aux)), ctl, _ = controlled(ctl, state[0], jax.tree.map(jnp.copy, state[1]), "train", **kwargs)
    assert same_bits((new, (loss, aux)), step(state[0], jax.tree.map(jnp.copy, state[1]), "train", **kwargs))
    with pytest.raises(entropic.Error, match="static arguments.*'train', 0.5.*'eval', 0.5"):
        controlled(ctl, *state, "eval", **kwargs)
    with pytest.raises(entropic.Error, match=r"step is called with args\[2\]\['x'\].* beyond and without batch\['x'\].* of what"):
        controlled(ctl, *state, "train", batch, smooth=0.5)


def test_other_shapes_say_which():
    tx = optax.adamw(1e-2)
    state = start(tx)
    step, ctl = entropic.control(train_step(tx), (*state, next(batches(1))))
    with pytest.raises(entropic.Error, match=r"batch\['x'\] is float32\[16, 12\].*float32\[32, 12\]"):
        step(ctl, *state, next(batches(1, size=16)))
    with pytest.raises(entropic.Error, match=r"is called with args\[2\]\['z'\] beyond what it was put under control for; call it as"):
        step(ctl, *state, {**next(batches(1)), "z": 0.0})
    with pytest.raises(entropic.Error, match="with the same leaves in other containers than what"):
        step(ctl, state[0], list(state[1]), next(batches(1)))
    with pytest.raises(entropic.Error, match="ctl is .*'counters'"):
        step({"policy": ctl["policy"]}, *state, next(batches(1)))


def test_typed_keys_and_a_train_state():
    from flax.training.train_state import TrainState

    tx = optax.adamw(1e-2)
    params, key = mlp(), jax.random.key(3)

    def step(state, key, batch):
        key, drop = jax.random.split(key)

        def loss_fn(p):
            keep = jax.random.bernoulli(drop, 0.9, batch["x"].shape)
            return loss_of(p, {**batch, "x": batch["x"] * keep})

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), key, loss

    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    step, _, _ = neutral(step, (state, key))
    assert len(step.tensors) == 4


def in_arrays_of_one(tree):
    return jax.tree.map(lambda x: x[None], tree)


def out_of_arrays_of_one(tree):
    return jax.tree.map(lambda x: x[0], tree)


@pytest.mark.parametrize("tx", [optax.adamw(1e-2), optax.optimistic_gradient_descent(1e-2)], ids=["adamw", "optimistic"])
def test_states_in_arrays_of_one(tx):
    def step(params, opt_state, batch):
        *state, loss = train_step(tx)(*out_of_arrays_of_one((params, opt_state)), batch)
        return *in_arrays_of_one(tuple(state)), loss

    state = in_arrays_of_one(start(tx))
    controlled, _, telemetry = neutral(step, state)
    one, ctl = entropic.control(train_step(tx), (*start(tx), next(batches(1))), "monitor")
    assert controlled.tensors == one.tensors
    plain = start(tx)
    for batch in batches(STEPS):
        (*plain, _), ctl, wanted = one(ctl, *plain, batch)
    np.testing.assert_allclose(telemetry["norm"], wanted["norm"], rtol=1e-4)
    found = entropic.inspect(step, (*state, next(batches(1))))
    assert [s.role for s in found.states] == [s.role for s in entropic.inspect(train_step(tx), (*plain, batch)).states]


def test_a_scan_over_states_in_arrays_of_one():
    tx = optax.adamw(1e-2)

    def launch(params, opt_state, many):
        def one(state, batch):
            *state, loss = train_step(tx)(*state, batch)
            return tuple(state), loss

        state, losses = jax.lax.scan(one, out_of_arrays_of_one((params, opt_state)), many)
        return *in_arrays_of_one(state), losses

    state = in_arrays_of_one(start(tx))
    many = jax.tree.map(lambda *x: np.stack(x), *batches(5))
    plain = jax.jit(launch)
    step, ctl = entropic.control(plain, (*state, many), {"rollback": {"kind": "snapshot", "refresh": 2}})
    assert ctl["snapshots"]["params['hidden']['w']"].shape == (12, 16)
    for _ in range(2):
        *theirs, losses = plain(*state, many)
        (*state, ours), ctl, telemetry = step(ctl, *state, many)
        assert same_bits((state, ours), (theirs, losses))
    assert telemetry["snapshots"][-1] > 0


def test_steps_in_a_scan_of_the_step_itself():
    tx = optax.adamw(1e-2)

    def launch(params, opt_state, many):
        def one(state, batch):
            *state, loss = train_step(tx)(*state, batch)
            return tuple(state), loss

        (params, opt_state), losses = jax.lax.scan(one, (params, opt_state), many)
        return params, opt_state, losses

    state = start(tx)
    many = jax.tree.map(lambda *x: np.stack(x), *batches(5))
    plain = jax.jit(launch)
    step, ctl = entropic.control(plain, (*state, many), "monitor")
    (*ours, losses), ctl, telemetry = step(ctl, *state, many)
    assert same_bits((*ours, losses), plain(*state, many))
    assert telemetry["steps"].tolist() == [1, 2, 3, 4, 5] and telemetry["entropy"].shape == (5, 4)


def test_a_controlled_step_in_a_scan_of_the_caller():
    tx = optax.adamw(1e-2)
    state = start(tx)
    many = jax.tree.map(lambda *x: np.stack(x), *batches(5))
    step, ctl = entropic.control(train_step(tx), (*state, next(batches(1))))

    @jax.jit
    def launch(ctl, state, many):
        def one(carry, batch):
            ctl, state = carry
            (*state, loss), ctl, telemetry = step(ctl, *state, batch)
            return (ctl, tuple(state)), (loss, telemetry)

        return jax.lax.scan(one, (ctl, state), many)

    (ctl, _), (losses, telemetry) = launch(ctl, state, many)
    assert telemetry["steps"].tolist() == [1, 2, 3, 4, 5] and np.all(np.diff(losses) != 0)
    assert ctl["counters"][0] == 5


def test_what_cannot_be_controlled_is_refused_with_its_reason():
    tx = optax.adamw(1e-2)
    state = start(tx)
    batch = next(batches(1))
    with pytest.raises(entropic.RefusedError, match="evaluate"):

        def evaluate(params, batch):
            return loss_of(params, batch)

        entropic.control(evaluate, (state[0], batch))

    def noisy(params, opt_state, batch):
        jax.debug.print("{}", batch["x"].sum())
        return train_step(tx)(params, opt_state, batch)

    with pytest.raises(entropic.RefusedError, match="noisy calls back into Python"):
        entropic.control(noisy, (*state, batch))
    step, ctl = entropic.control(train_step(tx), (*state, batch))
    with pytest.raises(entropic.RefusedError, match="has a controller already"):
        entropic.control(step, (ctl, *state, batch))
    assert issubclass(entropic.RefusedError, entropic.Error) and issubclass(entropic.PolicyError, entropic.Error)


def test_inspect_names_what_it_found():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    found = entropic.inspect(train_step(tx), (*start(tx), next(batches(1))))
    assert [p.name for p in found.parameters] == [f"params['{a}']['{b}']" for a in ("hidden", "out") for b in ("b", "w")]
    assert all(p.gradient and p.update and len(p.moments) == 2 for p in found.parameters)
    assert found.batch == ("batch['x']", "batch['y']")
    assert found.loss == "result[2]"
    assert {s.name for s in found.states if s.role == "parameter"} == {p.name for p in found.parameters}
    assert "params['out']['w']" in str(found) and "gradient" in str(found)


@pytest.mark.parametrize("view", ["eff", "preclip"])
def test_exposed_gradients_are_those_of_jax(view):
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))
    state = start(tx)
    batch = next(batches(1))
    outputs, found = jax.jit(entropic.expose(train_step(tx), (*state, batch), view))(*state, batch)
    grads = jax.grad(loss_of)(state[0], batch)
    if view == "eff":
        grads, _ = optax.clip_by_global_norm(0.1).update(grads, optax.EmptyState())
    wanted = {f"params{jax.tree_util.keystr(path)}": g for path, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)
    assert same_bits(outputs, jax.jit(train_step(tx))(*state, batch))
