"""`export_bundle`: conventions, pytrees, dropped inputs, donation, source locations, refusals, and the numbers."""

import dataclasses
import functools
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from entropic_export import export_bundle, wire
from entropic_export.signature import Leaf, role_of
from flax.training.train_state import TrainState

X = jax.ShapeDtypeStruct((8, 4), jnp.float32)
Y = jax.ShapeDtypeStruct((8,), jnp.float32)


def _params(seed):
    w, v = jax.random.split(jax.random.key(seed))
    return {"w": jax.random.normal(w, (4, 3)), "b": jnp.zeros(3), "v": jax.random.normal(v, (3,))}


def _loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2)


_TX = optax.adam(1e-2)


def _adam_init(seed):
    p = _params(seed)
    return p, _TX.init(p)


def _adam_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(_loss)(params, x, y)
    updates, opt_state = _TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def _sgd_step(params, x, y):
    loss, grads = jax.value_and_grad(_loss)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


def _dict_batch_step(params, batch):
    return _sgd_step(params, batch["x"], batch["y"])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params", "momentum", "rng", "seen"], meta_fields=[])
@dataclasses.dataclass
class Everything:
    """A state of a user's own kind: a typed PRNG key, a bf16 leaf and a counter besides the parameters."""

    params: dict
    momentum: dict
    rng: jax.Array
    seen: jax.Array


def _everything_init(seed):
    p = _params(seed)
    momentum = jax.tree.map(lambda a: jnp.zeros_like(a, jnp.bfloat16), p)
    return Everything(p, momentum, jax.random.key(seed), jnp.zeros((), jnp.int32))


def _everything_step(state, x, y):
    rng, noise = jax.random.split(state.rng)
    loss, grads = jax.value_and_grad(_loss)(state.params, x + 0.1 * jax.random.normal(noise, x.shape), y)
    momentum = jax.tree.map(lambda m, g: (0.9 * m + g).astype(jnp.bfloat16), state.momentum, grads)
    params = jax.tree.map(lambda p, m: p - 0.1 * m.astype(p.dtype), state.params, momentum)
    return Everything(params, momentum, rng, state.seen + 1), {"accuracy": loss * 2, "loss": loss}


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(5)(x)))[:, 0]


def _flax_init(seed):
    net = _Net()
    variables = net.init(jax.random.key(seed), jnp.zeros(X.shape))
    return TrainState.create(apply_fn=net.apply, params=variables["params"], tx=_TX)


def _flax_step(state, x, y):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((state.apply_fn({"params": p}, x) - y) ** 2))(state.params)
    return state.apply_gradients(grads=grads), loss


def _loss_first_step(x, params, y, opt_state):
    params, opt_state, loss = _adam_step(params, opt_state, x, y)
    return loss, opt_state, params


def _named_tuple_step(state, x, y):
    (momentum, params), loss = state, _loss(state[1], x, y)
    grads = jax.grad(_loss)(params, x, y)
    momentum = optax.TraceState(jax.tree.map(lambda m, g: 0.9 * m + g, momentum.trace, grads))
    return [momentum, jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum.trace)], loss


def _named_tuple_init(seed):
    p = _params(seed)
    return [optax.TraceState(jax.tree.map(jnp.zeros_like, p)), p]


CASES = {
    "params and opt_state": (_adam_step, _adam_init, (X, Y), {}),
    "plain sgd": (_sgd_step, _params, (X, Y), {}),
    "batch in a dict": (_dict_batch_step, _params, {"x": X, "y": Y}, {}),
    "dataclass with a typed key": (_everything_step, _everything_init, (X, Y), {}),
    "flax TrainState": (_flax_step, _flax_init, (X, Y), {}),
    "already jitted": (jax.jit(_adam_step, donate_argnums=(0, 1)), _adam_init, (X, Y), {}),
    "state and outputs in other places": (_loss_first_step, _adam_init, (X, Y), {"state_argnums": (1, 3)}),
    "list of a named tuple": (_named_tuple_step, _named_tuple_init, (X, Y), {"roles": {"state[1]": "param"}}),
    "other precision of the batch": (_sgd_step, _params, (np.zeros((8, 4), np.float16), np.zeros(8, np.float32)), {}),
}


def _export(tmp_path, step, init, batch, **options):
    manifest = export_bundle(step, init, batch, tmp_path / "bundle", **options)
    written = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    return manifest, written, {f.name: f.read_bytes() for f in (tmp_path / "bundle").iterdir()}


def _random(entry):
    rng = np.random.default_rng(len(entry.name))
    return rng.standard_normal(entry.shape).astype(entry.dtype)


def _numbers(tree):
    """The leaves as plain arrays in flattening order, keys as their words."""
    is_key = lambda a: jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


@pytest.mark.parametrize("case", CASES)
def test_bundle_computes_what_the_step_computes(case, tmp_path, run_hlo):
    step, init, batch, options = CASES[case]
    manifest, written, files = _export(tmp_path, step, init, batch, **options)

    # The state that init.hlo.pb makes is the one that init() makes, leaf by leaf.
    state = jax.jit(init)(np.uint32(3))
    states = list(state) if type(state) is tuple else [state]
    positions = list(options.get("state_argnums", range(len(states))))
    in_call_order = [states[n] for n in sorted(range(len(states)), key=positions.__getitem__)]
    initial = run_hlo(files["init.hlo.pb"], [np.uint32(3)])
    for made, wanted in zip(initial, _numbers(in_call_order), strict=True):
        np.testing.assert_array_equal(made, wanted)

    # One step of the module is one step of the function.
    arrays = dict(zip(manifest.init.outputs, initial, strict=True))
    arrays |= {n: _random(i) for n, i in enumerate(manifest.inputs) if i.role == "batch"}
    results = run_hlo(files["module.hlo.pb"], [arrays[n] for n in range(len(manifest.inputs))])
    batch_leaves = [arrays[n] for n, i in enumerate(manifest.inputs) if i.role == "batch"]
    batches = jax.tree.unflatten(jax.tree.structure(batch), batch_leaves)
    call = list(batches) if type(batches) is tuple else [batches]
    for position, value in sorted(zip(positions, states, strict=True), key=lambda pair: pair[0]):
        call.insert(position, value)
    for output, got, wanted in zip(manifest.outputs, results, _numbers(jax.jit(step)(*call)), strict=True):
        assert (got.dtype.name, got.shape) == (output.dtype, output.shape), output.name
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=2e-5, atol=1e-6)

    # The manifest holds together and is what was returned.
    assert written["format_version"] == 1
    assert [i["name"] for i in written["inputs"]] == [i.name for i in manifest.inputs]
    assert len({i.name for i in manifest.inputs}) == len(manifest.inputs)
    assert [o.role for o in manifest.outputs].count("loss") == 1
    succeeded = [o.input for o in manifest.outputs if o.input is not None]
    assert sorted(succeeded) == list(manifest.init.outputs)
    for output in manifest.outputs:
        if output.input is not None:
            before = manifest.inputs[output.input]
            assert (before.dtype, before.shape, before.role) == (output.dtype, output.shape, output.role)
            assert before.name.endswith(re.sub(r"^result(\[\d+\])?", "", output.name))


@pytest.mark.parametrize(
    ("case", "expected"),
    {
        "params and opt_state": {"params['w']": "param", "opt_state[0].mu['w']": "opt", "x": "batch"},
        "plain sgd": {"params['b']": "param", "y": "batch"},
        "batch in a dict": {"batch['x']": "batch"},
        "dataclass with a typed key": {
            "state.params['w']": "param", "state.momentum['w']": "state", "state.rng": "rng", "state.seen": "state",
        },
        "flax TrainState": {
            "state.step": "state", "state.params['Dense_0']['kernel']": "param",
            "state.opt_state[0].nu['Dense_1']['bias']": "opt",
        },
        "list of a named tuple": {"state[0].trace['w']": "state", "state[1]['w']": "param"},
    }.items(),
)  # fmt: skip
def test_names_and_roles(case, expected, tmp_path):
    step, init, batch, options = CASES[case]
    manifest, _, _ = _export(tmp_path, step, init, batch, **options)
    roles = {i.name: i.role for i in manifest.inputs}
    assert expected.items() <= roles.items(), roles


@pytest.mark.parametrize(
    ("name", "dtype", "argument", "position", "count", "role"),
    [
        ("s.params['w']", "float32", "s", 0, 1, "param"),
        ("s.opt_state[0].mu['params']", "float32", "s", 0, 1, "opt"),
        ("s['rng']", "uint32", "s", 0, 1, "rng"),
        ("params['h0']['key']", "float32", "params", 0, 1, "param"),
        ("state[1]['h0']['key']", "float32", "state", 0, 1, "state"),
        ("net['h0']['key']", "float32", "net", 0, 2, "param"),
        ("a['w']", "float32", "a", 1, 3, "opt"),
        ("b['w']", "float32", "b", 2, 3, "state"),
        ("optimizer.model['w']", "float32", "optimizer", 0, 1, "param"),
        ("rng", "uint32", "rng", 2, 3, "rng"),
    ],
)
def test_role_of_a_name(name, dtype, argument, position, count, role):
    assert role_of(Leaf(name, dtype, (2,), False), argument, position, count, {}) == role


def test_module_parameters_carry_the_manifest_names(tmp_path):
    from jaxlib import _hlo

    step, init, batch, _ = CASES["params and opt_state"]
    manifest, _, files = _export(tmp_path, step, init, batch)
    text = _hlo.HloModule.from_serialized_hlo_module_proto(files["module.hlo.pb"]).to_string()
    for number, entry in enumerate(manifest.inputs):
        op_name = entry.name.replace("'", "\\'")
        assert f'parameter({number}), metadata={{op_name="{op_name}"}}' in text


def test_dropped_inputs_leave_manifest_module_and_init(tmp_path, run_hlo):
    def init(seed):
        return {**_params(seed), "unused": jax.random.normal(jax.random.key(seed), (7,))}

    def step(params, x, y, mask):
        grads = jax.grad(_loss)(params, x, y)
        return {**jax.tree.map(lambda p, g: p - g, params, grads), "unused": jnp.ones(7)}, jnp.float32(0)

    manifest, _, files = _export(tmp_path, step, init, (X, Y, X))
    assert [i.name for i in manifest.inputs] == ["params['b']", "params['v']", "params['w']", "x", "y"]
    assert [o.input for o in manifest.outputs] == [0, None, 1, 2, None]
    assert [o.role for o in manifest.outputs] == ["param", "param", "param", "param", "loss"]
    assert manifest.init.outputs == (0, 1, 2)
    b, v, w = run_hlo(files["init.hlo.pb"], [np.uint32(5)])
    for got, name in ((b, "b"), (v, "v"), (w, "w")):
        np.testing.assert_array_equal(got, np.asarray(jax.jit(init)(np.uint32(5))[name]))


def test_dropped_inputs_keep_eval_indices_right(tmp_path, run_hlo):
    manifest, _, files = _export(
        tmp_path, _adam_step, _adam_init, (X, Y), eval_step=lambda params, opt_state, x, y: _loss(params, x, y)
    )
    assert [manifest.inputs[n].name for n in manifest.eval.inputs] == [
        "params['b']", "params['v']", "params['w']", "x", "y"
    ]  # fmt: skip
    p, _ = _adam_init(1)
    x, y = np.ones(X.shape, np.float32), np.ones(Y.shape, np.float32)
    (got,) = run_hlo(files["eval.hlo.pb"], [p["b"], p["v"], p["w"], x, y])
    np.testing.assert_allclose(got, _loss(p, x, y), rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "donate", "donated"),
    [
        (_adam_step, None, True),
        (_adam_step, False, False),
        (jax.jit(_adam_step), None, False),
        (jax.jit(_adam_step), True, True),
        (jax.jit(_adam_step, donate_argnums=(0, 1)), None, True),
        (jax.jit(_adam_step, donate_argnums=(0, 1)), False, False),
    ],
)
def test_donation_table(step, donate, donated, tmp_path):
    manifest, _, files = _export(tmp_path, step, _adam_init, (X, Y), donate=donate)
    table = wire.alias_table(files["module.hlo.pb"])
    expected = {n: o.input for n, o in enumerate(manifest.outputs) if o.input is not None}
    assert table == (expected if donated else {})


def test_without_init(tmp_path):
    manifest, written, files = _export(tmp_path, _adam_step, _adam_init(0), (X, Y))
    with_init, _, _ = _export(tmp_path / "other", _adam_step, _adam_init, (X, Y))
    assert "init.hlo.pb" not in files and written["init"] is None
    assert manifest.inputs == with_init.inputs and manifest.outputs == with_init.outputs


def test_a_new_bundle_replaces_the_files_of_the_old(tmp_path):
    evaluate = lambda params, opt_state, x, y: _loss(params, x, y)  # noqa: E731
    _, _, files = _export(tmp_path, _adam_step, _adam_init, (X, Y), eval_step=evaluate)
    assert set(files) == {"module.hlo.pb", "init.hlo.pb", "eval.hlo.pb", "manifest.json"}
    _, _, files = _export(tmp_path, _adam_step, _adam_init, (X, Y))
    assert set(files) == {"module.hlo.pb", "init.hlo.pb", "manifest.json"}


def test_bytes_do_not_depend_on_where_and_when(tmp_path):
    _, _, first = _export(tmp_path / "a", _adam_step, _adam_init, (X, Y))
    jax.clear_caches()
    jax.jit(lambda x: x + 1)(1)
    _, _, second = _export(tmp_path / "b", _adam_step, _adam_init, (X, Y))
    assert first == second


@pytest.mark.parametrize("keep", [False, True])
def test_source_locations(keep, tmp_path):
    _, _, files = _export(tmp_path, _adam_step, _adam_init, (X, Y), keep_source_locations=keep)
    for name in ("module.hlo.pb", "init.hlo.pb"):
        assert (pathlib.Path(__file__).name.encode() in files[name]) == keep
        assert (b".py" in files[name]) == keep
        assert b"jit(" in files[name], "op_name stays either way"


def test_data_describes_the_token_windows(tmp_path):
    def step(params, tokens):
        grads = jax.grad(lambda p: (p["e"][tokens] ** 2).mean())(params)
        return jax.tree.map(lambda p, g: p - g, params, grads), jnp.float32(1)

    manifest, written, _ = _export(
        tmp_path, step, {"e": jnp.zeros((256, 2))}, jax.ShapeDtypeStruct((4, 9), jnp.uint8), data="bytes"
    )
    assert manifest.inputs[1].role == "batch"
    assert written["data"] == {
        "kind": "bytes", "input": 1, "batch": 4, "window": 9, "vocab": 256, "loss_unit": "nats/byte",
    }  # fmt: skip


def _two_alike(params, ema, x, y):
    new, loss = _sgd_step(params, x, y)
    return loss, new, jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, new)


def _two_losses(params, x, y):
    new, loss = _sgd_step(params, x, y)
    return new, {"a": loss, "b": loss}


REFUSALS = {
    "state that changes its dtype": (
        lambda params, x, y: (jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), _loss(params, x, y)),
        _params, (X, Y), {}, r"output 0 differs from state argument 0 at \['b'\]: bfloat16\[3\] after, float32\[3\]",
    ),
    "state that is not returned": (lambda params, x, y: _loss(params, x, y), _params, (X, Y), {}, "no output matches"),
    "two states alike": (_two_alike, lambda s: (_params(s), _params(s)), (X, Y), {}, r"outputs \[1, 2\] all match"),
    "state_outputs of another shape": (
        _sgd_step, _params, (X, Y), {"state_outputs": 1}, "output 1 has another tree structure",
    ),
    "two outputs for one state": (_sgd_step, _params, (X, Y), {"state_outputs": (0, 1)}, "one per state"),
    "state_argnums beyond the arguments": (_sgd_step, _params, (X, Y), {"state_argnums": 3}, "below 3"),
    "two losses": (_two_losses, _params, (X, Y), {}, r"result\[1\]\['a'\], result\[1\]\['b'\]; name one with loss="),
    "loss that is none": (_sgd_step, _params, (X, Y), {"loss": "['loss']"}, "names 0 of the outputs"),
    "unknown role": (_sgd_step, _params, (X, Y), {"roles": {"params": "parameter"}}, "use one of param, opt, rng"),
    "bytes without tokens": (_sgd_step, _params, (X, Y), {"data": "bytes"}, "needs one integer batch input"),
    "unknown data": (_sgd_step, _params, (X, Y), {"data": "images"}, "use 'bytes' or 'tokens'"),
    "eval of a vector": (
        _sgd_step, _params, (X, Y), {"eval_step": lambda p, x, y: y}, "eval_step must return one floating scalar",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, tmp_path):
    step, init, batch, options, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        export_bundle(step, init, batch, tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists(), "nothing is written when the export is refused"


def test_two_states_alike_can_be_told_apart(tmp_path):
    manifest, _, _ = _export(
        tmp_path, _two_alike, lambda s: (_params(s), _params(s)), (X, Y), state_outputs=(1, 2),
        roles={"ema": "state"},
    )  # fmt: skip
    assert [o.input for o in manifest.outputs] == [None, 0, 1, 2, 3, 4, 5]
    assert [i.role for i in manifest.inputs] == ["param"] * 3 + ["state"] * 3 + ["batch"] * 2


def test_one_of_two_losses_can_be_named(tmp_path):
    manifest, _, _ = _export(tmp_path, _two_losses, _params, (X, Y), loss="['b']")
    assert [o.role for o in manifest.outputs] == ["param"] * 3 + ["aux", "loss"]


def _several(params, opt_state, x, y):
    def body(state, batch):
        params, opt_state, loss = _adam_step(*state, *batch)
        return (params, opt_state), (loss, batch[1].max())

    (params, opt_state), (losses, largest) = jax.lax.scan(body, (params, opt_state), (x, y))
    return params, opt_state, {"loss": losses, "largest": largest}, x[-1]


def test_a_loop_over_steps_is_a_launch_of_several(tmp_path):
    x, y = (jax.ShapeDtypeStruct((5, *s.shape), s.dtype) for s in (X, Y))
    manifest = export_bundle(
        _several, _adam_init, (x, y), tmp_path, eval_step=lambda p, s, x, y: _loss(p, x, y), steps_per_launch=5
    )
    assert json.loads((tmp_path / "manifest.json").read_text())["launch"] == {"replicas": 1, "partitions": 1, "steps": 5}
    reports = {o.name: (o.shape, o.role) for o in manifest.outputs if o.input is None}
    assert reports == {
        "result[2]['largest']": ((5,), "aux"),
        "result[2]['loss']": ((5,), "loss"),
        "result[3]": ((8, 4), "state"),
    }
    parameters, _ = wire.entry_shapes((tmp_path / "eval.hlo.pb").read_bytes())
    assert [shape for _, shape in parameters][-2:] == [(8, 4), (8,)]
    with pytest.raises(ValueError, match=r"x is float32\[5, 8, 4\]; its first dimension must be 4"):
        export_bundle(_several, _adam_init, (x, y), tmp_path, steps_per_launch=4)
