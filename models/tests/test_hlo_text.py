"""What `entropic show` prints is HLO text that XLA's own parser reads back as the module it came from, and `show` reads
what XLA prints.

The program is the one named by ENTROPIC_BIN, else target/debug/entropic; a missing one fails the tests.
"""

import os
import pathlib
import subprocess

import jax
import pytest
from conftest import CORPUS, MODELS, ROOT
from jax._src.lib import xla_client
from jaxlib import _hlo, _jax

FILES = sorted([*MODELS.glob("*/*.hlo.pb"), *CORPUS.glob("*.hlo.pb")])
PROGRAM = pathlib.Path(os.environ.get("ENTROPIC_BIN", ROOT / "target" / "debug" / "entropic"))


def normal_form(module, *, metadata):
    """A module as XLA prints it once names and order of computations are out of the way; everything else stays."""
    options = _hlo.HloPrintOptions.fingerprint()
    options.print_large_constants = True
    options.print_metadata = metadata
    options.print_backend_config = True
    options.print_control_dependencies = True
    return module.to_string(options)


def load(file):
    return _hlo.HloModule.from_serialized_hlo_module_proto(file.read_bytes())


def show(file):
    if not PROGRAM.is_file():
        pytest.fail(f"{PROGRAM} is missing: build it with `cargo build`, or name it with ENTROPIC_BIN")
    result = subprocess.run([PROGRAM, "show", file], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_are_files_to_check():
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name.removesuffix('.hlo.pb')}")
def test_xla_reads_what_show_prints(file):
    text = show(file)
    parsed = _hlo.hlo_module_from_text(text)
    metadata = "metadata={" in text
    # Compared line by line: a difference in a long module is then shown as the line it stands on.
    assert (
        normal_form(parsed, metadata=metadata).splitlines() == normal_form(load(file), metadata=metadata).splitlines()
    )


def long_form(module):
    """What XLA prints of a module, its constants whole."""
    options = _hlo.HloPrintOptions()
    options.print_large_constants = True
    return module.to_string(options)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name.removesuffix('.hlo.pb')}")
def test_show_reads_what_xla_prints(file, tmp_path):
    (tmp_path / "printed.txt").write_text(long_form(load(file)))
    text = show(tmp_path / "printed.txt")
    assert text.splitlines() == show(file).splitlines()
    # And XLA reads again what was printed of what was read.
    parsed = _hlo.hlo_module_from_text(text)
    metadata = "metadata={" in text
    assert (
        normal_form(parsed, metadata=metadata).splitlines() == normal_form(load(file), metadata=metadata).splitlines()
    )


def optimized(file):
    """The module that JAX's own CPU client makes of a file."""
    device = jax.devices()[0]
    program = _jax.mlir.hlo_to_stablehlo(file.read_bytes())
    devices = xla_client.DeviceList((device,))
    (module,) = device.client.compile_and_load(program, devices, xla_client.CompileOptions()).hlo_modules()
    return module


OPTIMIZED = [
    *(CORPUS / f"{name}.hlo.pb" for name in ("mlp_adam", "cnn_trainstate_adamw_clip", "gptscan_adamw_clip", "dropout_rng")),
    *(MODELS / "mlp" / f"{name}.hlo.pb" for name in ("module", "init", "eval")),
    MODELS / "gpt-nano" / "module.hlo.pb",
]


@pytest.mark.parametrize("file", OPTIMIZED, ids=lambda f: f"{f.parent.name}/{f.name.removesuffix('.hlo.pb')}")
def test_show_reads_what_xla_prints_of_an_optimized_module(file, tmp_path):
    """The order of computations is the proto's own; each of them, and the first line, are the same."""
    module = optimized(file)
    (tmp_path / "printed.txt").write_text(long_form(module))
    (tmp_path / "proto.hlo.pb").write_bytes(module.as_serialized_hlo_module_proto())
    text = show(tmp_path / "printed.txt")
    assert sorted(text.split("\n\n")) == sorted(show(tmp_path / "proto.hlo.pb").split("\n\n"))
    assert "fusion(" in text and "is_scheduled=true" in text
    assert len(_hlo.hlo_module_from_text(text).computations()) == len(module.computations())


def test_the_comparison_can_fail():
    """Another constant, another operand order and another dimension are each told apart."""
    text = """HloModule m

ENTRY e {
  a = f32[2]{0} parameter(0)
  b = f32[2]{0} parameter(1)
  ROOT r = f32[2]{0} subtract(a, b)
}
"""
    same = normal_form(_hlo.hlo_module_from_text(text), metadata=False)
    for old, new in (("subtract(a, b)", "subtract(b, a)"), ("subtract", "add"), ("[2]", "[3]")):
        assert normal_form(_hlo.hlo_module_from_text(text.replace(old, new)), metadata=False) != same
