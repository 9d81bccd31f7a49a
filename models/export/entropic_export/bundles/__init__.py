"""The committed bundles, by name; `python -m entropic_export.bundles` exports and checks them."""

import dataclasses
import pathlib
from collections.abc import Callable

from ..manifest import Manifest
from . import gpt, mlp


def _gpt(name: str, config: gpt.Config) -> Callable[[pathlib.Path, int | None], Manifest]:
    def export(path: pathlib.Path, layers: int | None) -> Manifest:
        if layers is None:
            return gpt.export(path, name, config)
        return gpt.export(path, f"{name}-{layers}-layers", dataclasses.replace(config, layers=layers))

    return export


BUNDLES: dict[str, Callable[[pathlib.Path, int | None], Manifest]] = {
    "mlp": lambda path, layers: mlp.export(path),
    "gpt-nano": _gpt("gpt-nano", gpt.NANO),
    "gpt-nano-spike": _gpt("gpt-nano-spike", gpt.NANO_SPIKE),
    "gpt-nano-noclip": _gpt("gpt-nano-noclip", gpt.NANO_NOCLIP),
    "gpt2-small": _gpt("gpt2-small", gpt.GPT2_SMALL),
    "gpt2-small-clip": _gpt("gpt2-small-clip", gpt.GPT2_SMALL_CLIP),
}
"""Each bundle's exporter: the folder to write, and another number of layers or None."""
