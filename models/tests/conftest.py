"""Shared by the tests: where things are, and how a serialized HLO module is run on JAX's own CPU client."""

import functools
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
from jax._src.lib import xla_client
from jaxlib import _jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CORPUS = ROOT / "tests" / "corpus"


@pytest.fixture(scope="session")
def run_hlo():
    """`run_hlo(module bytes, arrays) -> arrays`: compiles an HloModuleProto and executes it on one device."""

    device = jax.devices()[0]

    @functools.lru_cache(maxsize=8)
    def compiled(module: bytes):
        program = _jax.mlir.hlo_to_stablehlo(module)
        return device.client.compile_and_load(program, xla_client.DeviceList((device,)), xla_client.CompileOptions())

    def run(module: bytes, arguments):
        # Donated buffers must be the callee's own: device_put may share memory with the numpy array it was given.
        buffers = [jax.device_put(np.array(a), device).copy() for a in arguments]
        results = compiled(module).execute_sharded(buffers).disassemble_into_single_device_arrays()
        return [np.asarray(shards[0]) for shards in results]

    return run
