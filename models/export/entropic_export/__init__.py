"""Writes a JAX train step as an entropic model bundle; see `export_bundle`."""

from .bundle import export_bundle

__all__ = ["export_bundle"]
__version__ = "0.1.0"
