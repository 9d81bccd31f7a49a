"""What a policy comes to, with all that it leaves to the default."""

import functools
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

Policy = Mapping[str, Any] | str
"""Tables of a policy, or the name of one that comes with the program."""

POLICIES = pathlib.Path(__file__).parent.parent / "passes" / "policies"
# Tables of the default policy that act where a policy does not name them.
ALWAYS = ("gate",)


def in_force(policy: Policy | None) -> dict[str, Any] | None:
    """The tables that a policy names and those that always act, whole: what it leaves out has the default policy's value.

    It is what a record says of a run, so that a run under other defaults is another run. None, the plain step, has none.

    Raises:
      OSError: no policy of that name comes with the program.
    """
    if policy is None:
        return None
    default = _read("default")
    given = policy if not isinstance(policy, str) else {} if policy == "default" else _read(policy)
    return {table: _numbers(_over(default[table], given.get(table, {}))) for table in sorted({*ALWAYS, *given})}


@functools.cache
def _read(name: str) -> Mapping[str, Any]:
    tables = tomllib.loads((POLICIES / f"{name}.toml").read_text())
    return {key: table for key, table in tables.items() if key != "format_version"}


def _numbers(value: Any) -> Any:
    """All numbers as f64: 20 and 20.0 are one policy."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _over(default: Any, given: Any) -> Any:
    if not isinstance(default, Mapping) or not isinstance(given, Mapping):
        return given
    return {**default, **{key: _over(default.get(key, {}), value) for key, value in given.items()}}
