"""The committed bundles: they match their exporters, hold together, carry no paths, and train."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MODELS
from entropic_export import wire
from entropic_export.bundles import BUNDLES, __main__, gpt

NAMES = sorted(BUNDLES)
_BYTES_PER_ELEMENT = {"float32": 4, "int32": 4}


def _load(name):
    return json.loads((MODELS / name / "manifest.json").read_text())


def test_committed_bundles_match_their_exporters(capsys):
    assert __main__.main(["--check", "--out", str(MODELS)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("damage", ["another byte", "a missing file", "a file too many", "no bundle"])
def test_check_notices(damage, tmp_path, capsys):
    assert __main__.main(["mlp", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "mlp"
    if damage == "another byte":
        content = bytearray((folder / "module.hlo.pb").read_bytes())
        content[100] ^= 1
        (folder / "module.hlo.pb").write_bytes(content)
        expected = "module.hlo.pb: differs"
    elif damage == "a missing file":
        (folder / "eval.hlo.pb").unlink()
        expected = "eval.hlo.pb: missing"
    elif damage == "a file too many":
        (folder / "weights.bin").write_bytes(b"")
        expected = "weights.bin: the exporter does not write it"
    else:
        folder.rename(tmp_path / "other")
        expected = "mlp: missing"
    assert __main__.main(["mlp", "--check", "--out", str(tmp_path)]) == 1
    assert expected in capsys.readouterr().out


def test_check_names_other_versions(tmp_path, capsys):
    assert __main__.main(["mlp", "--out", str(tmp_path)]) == 0
    manifest = tmp_path / "mlp" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"optax": "', '"optax": "0.0.'))
    assert __main__.main(["mlp", "--check", "--out", str(tmp_path)]) == 1
    assert "exported with optax 0.0." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["no-such-bundle"], ["mlp", "--layers", "3"], ["gpt-nano", "--layers", "0"]])
def test_wrong_usage(arguments, tmp_path):
    with pytest.raises(SystemExit) as refusal:
        __main__.main([*arguments, "--out", str(tmp_path)])
    assert refusal.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_manifest_agrees_with_the_modules(name):
    manifest = _load(name)
    shapes = {
        f: wire.entry_shapes((MODELS / name / f).read_bytes()) for f in ("module.hlo.pb", "init.hlo.pb", "eval.hlo.pb")
    }
    of = lambda entries: [tuple(e["shape"]) for e in entries]  # noqa: E731
    inputs, outputs = of(manifest["inputs"]), of(manifest["outputs"])
    dims = lambda pairs: [dimensions for _, dimensions in pairs]  # noqa: E731
    assert dims(shapes["module.hlo.pb"][0]) == inputs
    assert dims(shapes["module.hlo.pb"][1]) == outputs
    assert dims(shapes["init.hlo.pb"][0]) == [()]
    assert dims(shapes["init.hlo.pb"][1]) == [inputs[n] for n in manifest["init"]["outputs"]]
    assert dims(shapes["eval.hlo.pb"][0]) == [inputs[n] for n in manifest["eval"]["inputs"]]
    assert dims(shapes["eval.hlo.pb"][1]) == [()]
    aliases = wire.alias_table((MODELS / name / "module.hlo.pb").read_bytes())
    assert aliases == {n: o["input"] for n, o in enumerate(manifest["outputs"]) if o["input"] is not None}


@pytest.mark.parametrize("name", NAMES)
def test_no_paths_no_custom_calls_no_large_files(name):
    for file in (MODELS / name).glob("*.hlo.pb"):
        content = file.read_bytes()
        assert b".py" not in content and b"custom-call" not in content, file
        assert len(content) < 2_000_000, file


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mlp", (0.04, 0.06)),
        ("gpt-nano", (0.7, 0.9)),
        ("gpt-nano-spike", (0.7, 0.9)),
        ("gpt-nano-noclip", (0.7, 0.9)),
        ("gpt2-small", (124, 125)),
        ("gpt2-small-clip", (124, 125)),
    ],
)
def test_sizes(name, millions):
    inputs = _load(name)["inputs"]
    count = sum(int(np.prod(i["shape"])) for i in inputs if i["role"] == "param")
    assert millions[0] < count / 1e6 < millions[1]
    assert all(i["dtype"] == "float32" for i in inputs if i["role"] == "param")


def test_layers_option_unrolls(tmp_path):
    assert __main__.main(["gpt-nano", "--layers", "2", "--out", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "gpt-nano" / "manifest.json").read_text())
    names = {i["name"] for i in manifest["inputs"] if i["role"] == "param"}
    assert len(names) == 4 + 12 * 2 and "params['h1']['qkv']" in names and "params['h2']['qkv']" not in names
    assert manifest["name"] == "gpt-nano-2-layers"


def _differences(one, other):
    return {key: (vars(one)[key], vars(other)[key]) for key in vars(one) if vars(one)[key] != vars(other)[key]}


def test_variants_differ_in_one_thing_each():
    assert _differences(gpt.GPT2_SMALL, gpt.GPT2_SMALL_CLIP) == {"clip": (None, 1.0)}
    assert _differences(gpt.NANO, gpt.NANO_NOCLIP) == {"clip": (1.0, None)}
    assert _differences(gpt.NANO, gpt.NANO_SPIKE) == {"spike": (None, gpt.Spike(start=100, steps=20, factor=30.0))}


def test_a_spike_multiplies_the_learning_rate_in_its_steps_alone():
    schedule = optax.constant_schedule(0.5)
    spiked = gpt.spiked(schedule, gpt.Spike(start=3, steps=2, factor=30.0))
    assert [float(spiked(jnp.asarray(count))) for count in range(7)] == [0.5, 0.5, 0.5, 15.0, 15.0, 0.5, 0.5]


@pytest.mark.parametrize("name", ["gpt-nano-spike", "gpt-nano-noclip"])
def test_variants_of_gpt_nano_start_from_its_parameters(name, run_hlo):
    def parameters(name):
        manifest = _load(name)
        values = run_hlo((MODELS / name / manifest["init"]["file"]).read_bytes(), [np.uint32(3)])
        inputs = [manifest["inputs"][n] for n in manifest["init"]["outputs"]]
        return {i["name"]: v for i, v in zip(inputs, values, strict=True) if i["role"] == "param"}

    expected, found = parameters("gpt-nano"), parameters(name)
    assert expected.keys() == found.keys()
    for parameter, value in expected.items():
        np.testing.assert_array_equal(found[parameter], value, err_msg=parameter)


@pytest.mark.parametrize(("name", "steps"), [("mlp", 200), ("gpt-nano", 6)])
def test_trains_from_its_files_alone(name, steps, run_hlo, tmp_path):
    """Init, steps and held-out loss through the files only; the text is the project's own manifest format."""
    manifest = _load(name)
    text = np.frombuffer((MODELS / "README.md").read_bytes() * 4, np.uint8)
    data, rng = manifest["data"], np.random.default_rng(0)

    def windows():
        starts = rng.integers(0, len(text) - data["window"], data["batch"])
        return np.stack([text[s : s + data["window"]] for s in starts]).astype(
            manifest["inputs"][data["input"]]["dtype"]
        )

    made = run_hlo((MODELS / name / manifest["init"]["file"]).read_bytes(), [np.uint32(1)])
    state = dict(zip(manifest["init"]["outputs"], made, strict=True))
    module = (MODELS / name / manifest["module"]).read_bytes()
    evaluation = (MODELS / name / manifest["eval"]["file"]).read_bytes()
    held_out = windows()

    def evaluate():
        values = {**state, data["input"]: held_out}
        return float(run_hlo(evaluation, [values[n] for n in manifest["eval"]["inputs"]])[0])

    before = evaluate()
    for _ in range(steps):
        values = {**state, data["input"]: windows()}
        results = run_hlo(module, [values[n] for n in range(len(manifest["inputs"]))])
        for output, value in zip(manifest["outputs"], results, strict=True):
            if output["input"] is not None:
                state[output["input"]] = value
    after = evaluate()
    assert 5.0 < before < 6.5, "an untrained model knows nothing: about ln 256 nats"
    assert after < before - 0.3
