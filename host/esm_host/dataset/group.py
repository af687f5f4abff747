"""The devices of a campaign: one, or several alike. Who takes part, and whether they are alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from esm_host.dataset.lanes import Batch, Finished, Member, OneEach, Shared, Source, measured
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.roster import Roster
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import BusyError, DeviceError, EsmError, MismatchError, UsageError
from esm_host.evaluation.device_paces import DevicePace, compare_devices
from esm_host.transport.distinct import check_distinct
from esm_protos.messages import BlockResult, DeviceInfo, Progress

_ENOUGH = 0.25  # an interval of so much of what is tolerated decides nothing any more
_MOST_REPEATS = 8


class GroupWatcher(Protocol):
    """Is told what becomes of the devices."""

    def on_progress(self, progress: Progress, device: str) -> None:
        """Of a block; ``device`` is empty where there is one only."""

    def on_compare(self, begins: bool) -> None:
        """The devices' references are looked at, or were."""

    def warn(self, text: str) -> None: ...


class Group:
    """Measures batches on all of its devices that are there.

    Args:
        members: who may take part; one is no group, unless the store is of one.
        settings: of which ``group_tolerance_percent`` is by how much a member's pace may differ,
            and ``reference_tolerance_percent`` likewise of a single reference, its member's pace
            divided out.
        references: makes the batch of the references alone.
        check_result: raises DeviceError for a block with which going on would be in vain.
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
        self._spec = settings.spec
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
        """Takes in the members that answered, by name; the others are asked again later.

        Raises:
            MismatchError: one of them is not of the store's devices, or of another kind.
        """
        for member in self._members:
            if member.name in devices:
                self._roster.admit(member.name, devices[member.name])
                self._present.append(member)
            elif member.name in missing:
                self._tell(member, missing[member.name])

    def muster(self) -> list[DeviceInfo]:
        """Takes in who came (back), and finds out whether all who are there are alike.

        Returns:
            The devices that take part in what is measured next.

        Raises:
            DeviceError: none is there; the error of the first.
            MismatchError: they differ, and which of them is wrong cannot be known.
        """
        devices = self._answering()
        names = {member.name for member in self._present}
        # Alone, one that measured already could be held against the past only.
        alone = len(names) == 1 and names <= self._measurements.readings().keys()
        if self._roster.is_group and not alone and names - self._compared:
            self._compare()
        here = {member.name for member in self._present}
        return [device for name, device in devices.items() if name in here]

    def measure(self, round_number: int, batches: Iterator[Batch]) -> Generator[Finished]:
        """Blocks as they are measured and stored; close it to cancel what is on the devices.

        Raises:
            DeviceError: the last device is gone, or refuses.
        """
        return self._kept(round_number, Shared(batches))

    def _kept(self, round_number: int, source: Source) -> Generator[Finished]:
        began = time.monotonic()
        blocks = measured(
            tuple(self._present), source, self._spec, self._check, self._on_progress, self._lose
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

    # Coming and going

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
            raise first or DeviceError("no device of the group is there")
        return devices

    def _lose(self, member: Member, error: EsmError) -> None:
        """Goes on without a member; raises its error where it is the last."""
        self._present.remove(member)
        self._compared.discard(member.name)
        if not self._present:
            raise error
        self._tell(member, error)

    def _tell(self, member: Member, error: EsmError) -> None:
        self._store.add_departure(member.name, str(error))
        self._watcher.warn(f"going on without {member.name}: {error}")

    # Alike in fact

    def _compare(self) -> None:
        """Measures the references on all members at a time, and leaves out who differs."""
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
                f"{'; '.join(unlike.values())}: which of them is wrong cannot be known; "
                f"esm-host devices doctor {next(iter(unlike))} says what may be, or measure on one "
                "of them alone"
            )
        for member in tuple(self._present):
            if (why := unlike.get(member.name)) is not None:
                self._unlike.add(member.name)
                cure = f"esm-host devices doctor {member.name} says what may be wrong"
                self._lose(member, MismatchError(f"{why}: {cure}"))
        self._compared = {member.name for member in self._present}

    def _measure_references(self) -> set[str]:
        with closing(self._kept(REFERENCE_ROUND, OneEach(self._references()))) as finished:
            return {each.block.block_id for each in finished}

    def _paces(self, blocks: set[str]) -> tuple[dict[str, DevicePace], set[str]]:
        """Of all that are there, by these blocks, and of who was, by what the store has.

        The others are held against those that measured for the data set, if any did.
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
                f"as {against} for the references; tolerated {100 * self._tolerance:g} %"
            )
        if pace.strays_beyond(self._stray_tolerance):
            return (
                f"{name} runs a reference {100 * pace.stray:.1f} % "
                f"(± {100 * pace.stray_interval:.1f} %) off its pace against {against}, "
                f"{pace.ratio:.2f}; tolerated {100 * self._stray_tolerance:g} %"
            )
        return None
