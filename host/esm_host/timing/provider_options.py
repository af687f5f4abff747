"""Execution providers and values of their options, as users give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.nearest import nearest

ALIASES = {"tf32": "cuda", "cuda_graph": "cuda"}
"""Provider of each deprecated switch, which sets the provider's option of the same name."""


@dataclass(frozen=True)
class Execution:
    """Execution provider with values of its options."""

    provider: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)


def executions(
    providers: Sequence[str],
    given: Iterable[str] | Mapping[str, object] = (),
    is_known: bool = True,
    **switches: bool,
) -> tuple[Execution, ...]:
    """Return each provider with its options.

    Args:
        providers: Names of the providers.
        given: ``"KEY=VALUE"`` or ``"NAME:KEY=VALUE"``, or values by ``KEY`` or ``NAME:KEY``; True
            is ``1`` and False is ``0``. Without ``NAME`` it belongs to the only provider.
        is_known: Whether options and switches must belong to one of the providers.
        switches: Switches of :data:`ALIASES`.

    Raises:
        UsageError: a provider or an option is given twice, an option has no value, or an option or
            a switch belongs to none of the providers.
    """
    listed = f"{argument('provider')} {','.join(providers)}"
    if not providers or not all(providers):
        raise UsageError(f"{listed}: give the name of an execution provider, such as cpu")
    for name in providers:
        if "," in name:
            each = ", ".join(f"'{part.strip()}'" for part in name.split(","))
            raise UsageError(f"{argument('provider')} '{name}': give a list, [{each}]")
    if len(set(providers)) < len(providers):
        raise UsageError(f"{listed}: give each provider once")
    found: dict[str, dict[str, str]] = {name: {} for name in providers}
    for text in _texts(given):
        full, _, value = text.partition("=")
        prefix, colon, name = full.rpartition(":")
        what = f"{argument('ep_options')} {text}"
        if not (name and value) or (colon and not prefix):
            raise UsageError(f"{what}: give KEY=VALUE, or NAME:KEY=VALUE for one of the providers")
        if not colon and len(providers) > 1:
            raise UsageError(
                f"{what}: there are {len(providers)} providers, give {providers[0]}:{text} or "
                f"another of {listed}"
            )
        if colon and is_known and prefix not in found:
            raise UsageError(
                f"{what}: '{prefix}' is not in {listed}: {nearest(prefix, providers)}give one of "
                "its names"
            )
        own = found[prefix if prefix in found else providers[0]]
        if name in own:
            raise UsageError(f"{what}: {full} is given twice")
        own[name] = value
    for name, on in switches.items():
        if not on:
            continue
        if is_known and ALIASES[name] not in found:
            raise UsageError(f"{argument(name)} needs {argument('provider')} {ALIASES[name]}")
        own = found.get(ALIASES[name], found[providers[0]])
        if own.setdefault(name, "1") != "1":
            text = f"{argument('ep_options')} {name}={own[name]}"
            raise UsageError(f"{text}: leave {argument(name)} out")
    return tuple(Execution(name, options) for name, options in found.items())


def only(found: Sequence[Execution]) -> Execution:
    """Return the only provider.

    Raises:
        UsageError: there are several.
    """
    if len(found) > 1:
        given = ",".join(each.provider for each in found)
        raise UsageError(
            f"{argument('provider')} {given}: this command measures on one execution provider, "
            "give one"
        )
    return found[0]


def _texts(given: Iterable[str] | Mapping[str, object]) -> Iterable[str]:
    if isinstance(given, Mapping):
        return [f"{name}={_text(value)}" for name, value in given.items()]
    return given


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
