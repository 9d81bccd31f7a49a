"""benches/python/handwritten.py decides and measures what the injected controller does, so that timing both is fair.

Both bundles are run from their files, on the same batches. The program is found as in test_hlo_text.py.
"""

import dataclasses
import functools
import json
import subprocess

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MODELS
from entropic_export import export_bundle
from entropic_export.bundles import gpt
from test_hlo_text import PROGRAM

GATE = handwritten.Gate(multiple=1.3, deviations=1.5, half_life=4, warmup=3, max_pause=3)
POLICY = """
format_version = 1

[gate]
max_pause = 3

[gate.norm]
multiple = 1.3
deviations = 1.5
half_life = 4
warmup = 3
"""


@pytest.fixture
def inject(tmp_path):
    """`inject(bundle) -> bundle`, under the policy above."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)

    def run(bundle):
        out = tmp_path / "injected"
        command = [PROGRAM, "inject", bundle, "-o", out, "--policy", policy]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return out

    return run


def run_bundle(run_hlo, folder, batches):
    """Outputs of each step, by name, and the last state by the name of its input."""
    manifest = json.loads((folder / "manifest.json").read_text())
    init, inputs = manifest["init"], manifest["inputs"]
    state = dict(zip(init["outputs"], run_hlo((folder / init["file"]).read_bytes(), [np.uint32(0)]), strict=True))
    layout = manifest.get("controller", {}).get("layout")
    for array in layout["inputs"] if layout else []:
        values = [np.full(field["len"], field["initial"]) for field in layout[array["kind"]]]
        state[array["parameter"]] = np.concatenate(values).astype(inputs[array["parameter"]]["dtype"])
    batch_input = next(n for n, i in enumerate(inputs) if i["role"] == "batch")
    module, steps = (folder / manifest["module"]).read_bytes(), []
    for batch in batches:
        state[batch_input] = batch
        results = run_hlo(module, [state[n] for n in range(len(inputs))])
        steps.append({o["name"]: v for o, v in zip(manifest["outputs"], results, strict=True)})
        state.update({o["input"]: v for o, v in zip(manifest["outputs"], results, strict=True) if o["input"] is not None})
    if layout:
        field_of = {f["name"]: slice(f["offset"], f["offset"] + f["len"]) for f in layout["telemetry"]}
        steps = [{name: s["entropic.telemetry"][at] for name, at in field_of.items()} for s in steps]
    return steps, {i["name"]: state[n] for n, i in enumerate(inputs)}


def compare(injected, by_hand):
    """Steps and final states of both agree; returns which steps were applied."""
    (ours, our_state), (theirs, their_state) = injected, by_hand
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        told = {name.removeprefix("result[4]."): np.atleast_1d(v) for name, v in b.items() if name.startswith("result[4].")}
        for name, field in [
            ("applied", "applied"), ("accepted", "accepted"), ("non_finite", "non_finite"),
            ("refused_norm", "refused_norm"), ("rearmed", "rearmings"),
        ]:  # fmt: skip
            assert a[field] == told[name], (number, name, a[field], told[name])
        finite = bool(a["finite"])
        for name in ["entropy", "smoothed"] if finite else ["smoothed"]:
            np.testing.assert_allclose(told[name], a[name], atol=1e-5, err_msg=f"{name} in step {number}")
        if finite:
            np.testing.assert_allclose(told["norm"], a["norm"], rtol=1e-4, atol=1e-9, err_msg=f"step {number}")
        np.testing.assert_allclose(told["norm_mean"], a["norm_mean"], rtol=1e-4, err_msg=f"step {number}")
        np.testing.assert_allclose(told["threshold"], a["norm_threshold"], rtol=1e-4, err_msg=f"step {number}")
    shared = our_state.keys() & their_state.keys()
    assert len(shared) > 3
    for name in shared:
        np.testing.assert_allclose(their_state[name], our_state[name], rtol=1e-3, atol=1e-4, err_msg=name)
    return [bool(step["applied"]) for step in ours]


def test_it_agrees_on_a_gpt_with_bad_batches(inject, run_hlo, tmp_path):
    """`gpt-nano` but for its size."""
    config = dataclasses.replace(gpt.NANO, layers=1, batch=4)
    gpt.export(tmp_path / "plain", "plain", config)
    handwritten.export(config, "plain", tmp_path / "by-hand", GATE)
    text = np.frombuffer((MODELS / "README.md").read_bytes(), np.uint8)
    shape = (config.batch, config.context + 1)
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(text) - shape[1], (9, shape[0]))
    batches = [np.stack([text[s : s + shape[1]] for s in row]).astype(np.int32) for row in starts]
    batches[5:7] = [np.zeros(shape, np.int32)] * 2
    applied = compare(
        run_bundle(run_hlo, inject(tmp_path / "plain"), batches), run_bundle(run_hlo, tmp_path / "by-hand", batches)
    )
    assert applied == [n not in (5, 6) for n in range(9)]


def test_it_agrees_on_what_is_not_finite_and_after_a_long_pause(inject, run_hlo, tmp_path):
    """A linear model with a schedule, on batches of floats, which can be anything."""
    tx = optax.adamw(optax.linear_schedule(1e-2, 1e-3, 20), weight_decay=0.0)
    batch = jax.ShapeDtypeStruct((8, 5), jnp.float32)

    def loss(params, batch):
        return jnp.mean(jnp.square(jnp.tanh(batch @ params["w"]) @ params["v"] - batch.sum(-1)))

    def init(seed, control):
        keys = jax.random.split(jax.random.key(seed))
        params = {"w": jax.random.normal(keys[0], (5, 7)), "v": jax.random.normal(keys[1], (7,))}
        return (params, tx.init(params), *([handwritten.start(params, GATE)] if control else []))

    def step(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    export_bundle(step, functools.partial(init, control=False), batch, tmp_path / "plain")
    export_bundle(
        handwritten.controlled(loss, tx, GATE), functools.partial(init, control=True), batch, tmp_path / "by-hand",
        loss="result[3]", roles={"control": "state"},
    )  # fmt: skip
    rng = np.random.default_rng(1)
    good = rng.normal(size=(16, 8, 5)).astype(np.float32)
    good[:] = good[0]
    good[4, 2, 3], good[5, 0, 0] = np.nan, np.inf
    # Large from here on: three refusals, then the gate is re-armed.
    good[8:] *= 3
    applied = compare(
        run_bundle(run_hlo, inject(tmp_path / "plain"), good), run_bundle(run_hlo, tmp_path / "by-hand", good)
    )
    assert applied == [n not in (4, 5, 8, 9, 10) for n in range(16)]
