"""What `entropic show` prints is HLO text: XLA's own parser reads it back as the module it came from.

The program is the one named by ENTROPIC_BIN, else target/release/entropic; a missing one fails the tests.
"""

import os
import pathlib
import subprocess

import pytest
from conftest import CORPUS, MODELS, ROOT
from jaxlib import _hlo

FILES = sorted([*MODELS.glob("*/*.hlo.pb"), *CORPUS.glob("*.hlo.pb")])
PROGRAM = pathlib.Path(os.environ.get("ENTROPIC_BIN", ROOT / "target" / "release" / "entropic"))


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
        pytest.fail(f"{PROGRAM} is missing: build it with `cargo build --release`, or name it with ENTROPIC_BIN")
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
