"""Roster of the devices whose measurements a store accepts: one device, or one group."""

from __future__ import annotations

from collections.abc import Sequence

from esm_host.arguments import argument
from esm_host.dataset.store import GROUP_FACT, Store
from esm_host.errors import MismatchError
from esm_protos.messages import DeviceInfo

_KIND = "device_identity"  # of the first device; a member's is the fact "device_identity NAME"

Identity = dict[str, str | int]


class Roster:
    """Devices that a store accepts.

    Args:
        store: Store that holds the identities.
        provider: Execution provider; it determines which facts identify a device.
        names: Names of the given devices. Several make a new campaign a group campaign.
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
        """Whether several devices may measure, even if only one is given."""
        return len(self._names) > 1 or self._group is not None

    def admit(self, name: str, device: DeviceInfo) -> None:
        """Record the identity of a new device and check it against the store.

        Raises:
            MismatchError: as in :meth:`check`, or the store was begun on a single device.
        """
        if self.is_group and self._group is None:
            if self._kind is not None:
                raise MismatchError(
                    f"{self._where} was begun on one device, not on a group: continue with that "
                    f"device, or measure on the group in another {argument('run')} folder"
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
        """Check a device against the store without writing; callable from any thread.

        Raises:
            MismatchError: the device is unknown, differs from the one admitted by that name, or
                is of another kind than its group.
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
                f"({device.hostname}) is not one of them: measure it in another {argument('run')} "
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
                f"{name} differs from the rest of the group ({'; '.join(differs)}): remove it from "
                "the group, or make them equal"
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
