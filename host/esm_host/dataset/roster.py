"""Whose measurements a store takes: those of one device, or of the members of one group."""

from __future__ import annotations

from collections.abc import Sequence

from esm_host.arguments import argument
from esm_host.dataset.store import GROUP_FACT, Store
from esm_host.errors import MismatchError
from esm_protos.messages import DeviceInfo

_KIND = "device_identity"  # of the first; a member's own is the fact "device_identity NAME"

Identity = dict[str, str | int]


class Roster:
    """Whom a store knows.

    Args:
        provider: what models are measured with; it decides which facts count.
        names: of the devices at hand; several make a new campaign one of a group.
    """

    def __init__(self, store: Store, provider: str, names: Sequence[str]) -> None:
        self._store = store
        self._provider = provider
        self._names = list(names)
        self._kind: Identity | None = store.fact(_KIND)
        self._group: list[str] | None = store.fact(GROUP_FACT)
        self._own: dict[str, Identity] = {
            name: identity
            for name in self._group or ()
            if (identity := store.fact(f"{_KIND} {name}")) is not None
        }

    @property
    def is_group(self) -> bool:
        """Whether several devices may measure, also where one alone is at hand."""
        return len(self._names) > 1 or self._group is not None

    def admit(self, name: str, device: DeviceInfo) -> None:
        """Writes down who the device is, unless the store knows it; raises as :meth:`check`."""
        if self.is_group and self._group is None:
            if self._kind is not None:
                raise MismatchError(
                    f"{self._where} was begun on one device, not on a group: go on with that one, "
                    f"or measure on the group in another {argument('run')} folder"
                )
            self._group = self._names
            self._store.add_fact(GROUP_FACT, self._group)
        if self._kind is None:
            self._kind = device.identity(self._provider)
            self._store.add_fact(_KIND, self._kind)
        if self._group is not None and name in self._group and name not in self._own:
            self._check_kind(name, device)
            self._own[name] = device.identity(self._provider)
            self._store.add_fact(f"{_KIND} {name}", self._own[name])
        self.check(name, device)

    def check(self, name: str, device: DeviceInfo) -> None:
        """Writes nothing; from any thread.

        Raises:
            MismatchError: the device is another one than was admitted by that name, a stranger,
                or of another kind than the rest of its group.
        """
        identity = device.identity(self._provider)
        if self._group is None:
            if identity != self._kind:
                raise self._other(self._kind or {}, identity)
            return
        self._check_kind(name, device)
        if name in self._own:
            if identity != self._own[name]:
                raise self._other(self._own[name], identity)
        elif identity not in self._own.values():
            raise MismatchError(
                f"{self._where} holds measurements of the group {', '.join(self._group)}; {name} "
                f"({device.hostname}) is none of them: measure it in another {argument('run')} "
                "folder"
            )

    def _check_kind(self, name: str, device: DeviceInfo) -> None:
        kind = dict(self._kind or {})
        identity = device.identity(self._provider)
        differs = [
            f"{fact} {identity.get(fact)} instead of {value}"
            for fact, value in kind.items()
            if fact != "hostname" and identity.get(fact) != value
        ]
        if differs:
            raise MismatchError(
                f"{name} is not like the rest of the group ({'; '.join(differs)}): take it out of "
                "the group, or make them alike"
            )

    def _other(self, known: Identity, identity: Identity) -> MismatchError:
        differs = [
            f"{fact} {known.get(fact)} -> {value}"
            for fact, value in identity.items()
            if known.get(fact) != value
        ]
        return MismatchError(
            f"{self._where} holds measurements of another device ({'; '.join(differs)}): measure "
            f"this one in another {argument('run')} folder"
        )

    @property
    def _where(self) -> str:
        return self._store.database.campaign
