"""Devices of a campaign: a single device, or a group of equal devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from esm_host.dataset.lanes import (
    Batch,
    MeasuredBlock,
    Member,
    SameBatch,
    SharedBatches,
    Source,
    measure_batches,
)
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.roster import Roster
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import BusyError, DeviceError, EsmError, MismatchError, UsageError
from esm_host.evaluation.device_paces import DevicePace, compare_devices
from esm_host.transport.distinct import check_distinct
from esm_protos.messages import BlockResult, DeviceInfo, Progress

_ENOUGH = 0.25  # share of the tolerance below which a narrower interval changes no decision
_MOST_REPEATS = 8


class GroupWatcher(Protocol):
    """Receiver of events about the devices of a group."""

    def on_progress(self, progress: Progress, device: str) -> None:
        """Report the progress of a block; ``device`` is empty for a single device."""

    def on_compare(self, begins: bool) -> None:
        """Report that the comparison of the devices begins, or has ended."""

    def warn(self, text: str) -> None: ...


class Group:
    """Measurement of batches on all reachable devices of a group.

    Args:
        store: Store that receives the blocks.
        measurements: Measurements of the same store.
        members: Devices that may take part. A single device is a group only if the store is of a
            group.
        settings: Settings of measuring. ``group_tolerance_percent`` limits the deviation of a
            member's pace. ``reference_tolerance_percent`` limits the deviation of a single
            reference, with the pace of its member divided out.
        references: Function that makes the batch of references.
        check_result: Function that raises DeviceError for a block that ends the campaign.
        watcher: Receiver of events.
    """

    def __init__(
        self,
        store: Store,
        measurements: Measurements,
        members: Sequence[Member],
        settings: MeasuringSettings,
        references: Callable[[], Batch],
        check_result: Callable[[BlockResult], None],
        watcher: GroupWatcher,
    ) -> None:
        self._store = store
        self._measurements = measurements
        self._members = list(members)
        self._settings = settings
        self._tolerance = settings.group_tolerance_percent / 100
        self._stray_tolerance = settings.reference_tolerance_percent / 100
        self._references = references
        self._check_result = check_result
        self._watcher = watcher
        self._roster = Roster(store, settings.spec.provider, [member.name for member in members])
        self._present: list[Member] = []
        self._compared: set[str] = set()
        self._unlike: set[str] = set()

    def admit(self, devices: Mapping[str, DeviceInfo], missing: Mapping[str, EsmError]) -> None:
        """Admit the members that answered; the others are tried again later.

        Args:
            devices: Devices that answered, by name.
            missing: Errors of the devices that did not, by name.

        Raises:
            MismatchError: a device is not one of the store's, or of another kind.
        """
        for member in self._members:
            if member.name in devices:
                self._roster.admit(member.name, devices[member.name])
                self._present.append(member)
            elif member.name in missing:
                self._tell(member, missing[member.name])

    def muster(self) -> list[DeviceInfo]:
        """Admit the members that are reachable now, and compare new ones with the others.

        Returns:
            Devices that take part in the next measurement.

        Raises:
            DeviceError: no device is reachable; the error of the first.
            MismatchError: the devices differ, and no majority shows which of them is wrong.
        """
        devices = self._answering()
        names = {member.name for member in self._present}
        # A single device that measured before could be compared only with its own past.
        alone = len(names) == 1 and names <= self._measurements.readings().keys()
        if self._roster.is_group and not alone and names - self._compared:
            self._compare()
        here = {member.name for member in self._present}
        return [device for name, device in devices.items() if name in here]

    def measure(self, round_number: int, batches: Iterator[Batch]) -> Generator[MeasuredBlock]:
        """Yield blocks as they are measured and stored; close it to cancel running blocks.

        Raises:
            DeviceError: the last device is unreachable, or refuses.
        """
        return self._kept(round_number, SharedBatches(batches))

    def _kept(self, round_number: int, source: Source) -> Generator[MeasuredBlock]:
        began = time.monotonic()
        blocks = measure_batches(
            tuple(self._present), source, self._settings, self._check, self._on_progress, self._lose
        )
        with closing(blocks):
            for each in blocks:
                wall_s = time.monotonic() - began
                began += wall_s
                self._store.add_block(
                    round_number,
                    each.block,
                    each.result,
                    each.device,
                    each.bytes_sent,
                    wall_s,
                    each.device_name,
                )
                yield each

    def _check(self, name: str, device: DeviceInfo, result: BlockResult) -> None:
        self._roster.check(name, device)
        self._check_result(result)

    def _on_progress(self, name: str, progress: Progress) -> None:
        self._watcher.on_progress(progress, name if len(self._members) > 1 else "")

    # Members that join and leave

    def _answering(self) -> dict[str, DeviceInfo]:
        devices: dict[str, DeviceInfo] = {}
        first: EsmError | None = None
        nobody_yet = not self._present
        for member in self._members:
            here = member in self._present
            if member.name in self._unlike:
                continue
            alone = len(self._members) == 1
            profiler = member.profiler if here or alone else member.at_once
            try:
                device = profiler.device_info()
                check_distinct({**devices, member.name: device})
                self._roster.admit(member.name, device)
            except (MismatchError, UsageError) as error:
                if nobody_yet:
                    raise
                self._unlike.add(member.name)
                if here:
                    self._lose(member, error)
                else:
                    self._tell(member, error)
            except (BusyError, DeviceError) as error:
                first = first or error
                if here:
                    self._lose(member, error)
                elif nobody_yet and not alone:
                    self._tell(member, error)
            else:
                devices[member.name] = device
                if not here:
                    self._present.append(member)
        if not self._present:
            raise first or DeviceError("no device of the group is reachable")
        return devices

    def _lose(self, member: Member, error: EsmError) -> None:
        """Continue without a member; raise its error if it was the last."""
        self._present.remove(member)
        self._compared.discard(member.name)
        if not self._present:
            raise error
        self._tell(member, error)

    def _tell(self, member: Member, error: EsmError) -> None:
        self._store.add_departure(member.name, str(error))
        self._watcher.warn(f"continuing without {member.name}: {error}")

    # Comparison of the members

    def _compare(self) -> None:
        """Measure the references on all members and exclude those that differ."""
        self._watcher.on_compare(begins=True)
        blocks: set[str] = set()
        for _ in range(_MOST_REPEATS):
            blocks |= self._measure_references()
            paces, voters = self._paces(blocks)
            if max(pace.interval for pace in paces.values()) <= _ENOUGH * self._tolerance:
                break
        self._watcher.on_compare(begins=False)
        unlike = {name: why for name in paces if (why := self._difference(name, paces[name]))}
        if 2 * len(voters - unlike.keys()) <= len(voters):
            raise MismatchError(
                f"{'; '.join(unlike.values())}: it is not clear which of them is wrong; "
                f"run esm-host devices doctor {next(iter(unlike))}, or measure on a single device"
            )
        for member in tuple(self._present):
            if (why := unlike.get(member.name)) is not None:
                self._unlike.add(member.name)
                cure = f"run esm-host devices doctor {member.name}"
                self._lose(member, MismatchError(f"{why}: {cure}"))
        self._compared = {member.name for member in self._present}

    def _measure_references(self) -> set[str]:
        with closing(self._kept(REFERENCE_ROUND, SameBatch(self._references()))) as finished:
            return {each.block.block_id for each in finished}

    def _paces(self, blocks: set[str]) -> tuple[dict[str, DevicePace], set[str]]:
        """Return the paces of the members, and the names of the devices they are compared with.

        Members are compared with the devices that measured for the data set, if there are any.
        """
        readings = self._measurements.readings()
        incumbents = set(readings)
        readings |= self._measurements.readings(blocks)
        voters = incumbents or set(readings)
        return compare_devices(readings, voters), voters

    def _difference(self, name: str, pace: DevicePace) -> str | None:
        against = pace.against
        if pace.beyond(self._tolerance):
            return (
                f"{name} takes {pace.ratio:.2f} times (± {pace.ratio * pace.interval:.2f}) as long "
                f"as {against} for the references; the limit is {100 * self._tolerance:g} %"
            )
        if pace.strays_beyond(self._stray_tolerance):
            return (
                f"{name} runs a reference {100 * pace.stray:.1f} % "
                f"(± {100 * pace.stray_interval:.1f} %) off its pace against {against}, "
                f"{pace.ratio:.2f}; the limit is {100 * self._stray_tolerance:g} %"
            )
        return None
