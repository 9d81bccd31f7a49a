"""Entropy control for JAX train steps.

    step, ctl = entropic.control(train_step, (params, opt_state, batch))
    (params, opt_state, loss), ctl, telemetry = step(ctl, params, opt_state, batch)

`control` puts the controller into a step, `inspect` says what was found in it, `expose` adds its gradients to its outputs. Whatever
fails is an `Error`, with the text of the failure.
"""

from typing import TYPE_CHECKING, Any

from ._native import Error, PolicyError, RefusedError

if TYPE_CHECKING:
    from ._control import ControlledStep, Controller, Telemetry, control
    from ._inspect import Inspection, Parameter, State, expose, inspect

__all__ = [
    "ControlledStep",
    "Controller",
    "Error",
    "Inspection",
    "Parameter",
    "PolicyError",
    "RefusedError",
    "State",
    "Telemetry",
    "control",
    "expose",
    "inspect",
]

_HOME = {name: "_control" for name in ("ControlledStep", "Controller", "Telemetry", "control")}
_HOME |= {name: "_inspect" for name in ("Inspection", "Parameter", "State", "expose", "inspect")}


def __getattr__(name: str) -> Any:
    # The program `entropic` lives in this package, too, and starts in milliseconds because JAX is imported only for what needs it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
