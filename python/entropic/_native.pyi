"""The passes and the program, in Rust: `crates/python`. Modules are serialized `HloModuleProto`s, layouts and reports JSON."""

import os
from typing import final

class Error(Exception):
    """Whatever fails in entropic; the text says what, where, and what to do."""

class RefusedError(Error):
    """A step that is not controlled: it is not understood, or it is controlled already."""

class PolicyError(Error):
    """A policy that cannot be read, or does not fit the step."""

@final
class Policy:
    """A policy that was read and is valid."""

    @staticmethod
    def open(path: str | os.PathLike[str] | None) -> Policy:
        """Reads a TOML file, or takes `default`, `monitor`, `article` or `spectral`; the default policy without a path."""

    @staticmethod
    def from_json(text: str) -> Policy:
        """Takes the tables of a policy as a JSON object."""

@final
class Step:
    """A lowered train step."""

    def __new__(cls, module: bytes, name: str, inputs: list[str], outputs: list[str], successors: dict[int, int]) -> Step:
        """`name` is what errors call the step; `inputs` and `outputs` name parameters and results of the entry computation, and
        `successors` has, by number of a result, that of the parameter whose next value it is, as far as that is known."""

    def inspect(self) -> tuple[str, str]:
        """What was found, as JSON and as text."""

    def inject(self, policy: Policy, platform: str) -> Injected:
        """Puts the controller in, emitted as the compiler of `platform` likes it."""

    def expose(self, view: str) -> tuple[bytes, list[tuple[str, str, list[int]]]]:
        """The module with a view of every gradient as further outputs; parameter, dtype and shape of each of these."""

@final
class Injected:
    """A controlled step."""

    @property
    def module(self) -> bytes:
        """The controlled module."""

    @property
    def layout(self) -> str:
        """What the controller adds, as JSON."""

    @property
    def policy(self) -> list[float]:
        """The contents of the input `policy`, f32."""

    @property
    def state(self) -> list[float]:
        """The contents of the input `state` before the first step, f32."""

    @property
    def counters(self) -> list[int]:
        """The contents of the input `counters` before the first step, s32."""

    def policy_numbers(self, policy: Policy) -> list[float]:
        """The contents of the input `policy` under another policy that differs in numbers alone."""

def main(arguments: list[str], again: list[str]) -> int:
    """Runs the program on a command line that begins with its name; `again` is the command that starts it once more."""
