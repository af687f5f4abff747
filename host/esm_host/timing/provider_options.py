"""Options of an execution provider, as users give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from esm_host.arguments import argument
from esm_host.errors import UsageError

ALIASES = {"tf32": "cuda", "cuda_graph": "cuda"}
"""Provider of each deprecated switch, which sets the provider's option of the same name."""


def given_options(
    given: Iterable[str] | Mapping[str, object] = (), provider: str | None = None, **switches: bool
) -> dict[str, str]:
    """Return values of options by name, as a spec has them.

    Args:
        given: ``"NAME=VALUE"``, or values by name; True is ``1`` and False is ``0``.
        provider: Provider that measures; None does not check that the switches belong to it.
        switches: Switches of :data:`ALIASES`.

    Raises:
        UsageError: an option has no name or is given twice, or a switch is of another provider.
    """
    found: dict[str, str] = {}
    if isinstance(given, Mapping):
        given = [f"{name}={_text(value)}" for name, value in given.items()]
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{argument('ep_options')} {text}: give NAME=VALUE")
        if name in found:
            raise UsageError(f"{argument('ep_options')} {text}: {name} is given twice")
        found[name] = value
    for name, on in switches.items():
        if not on:
            continue
        if provider not in (None, ALIASES[name]):
            raise UsageError(f"{argument(name)} needs {argument('provider')} {ALIASES[name]}")
        if found.setdefault(name, "1") != "1":
            text = f"{argument('ep_options')} {name}={found[name]}"
            raise UsageError(f"{text}: leave {argument(name)} out")
    return found


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
