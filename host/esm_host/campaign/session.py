"""What a campaign measures with: its devices and its store, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder
from esm_host.dataset import collect
from esm_host.dataset.collect import Collector
from esm_host.dataset.lanes import Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import BusyError, DeviceError, EsmError, MismatchError, UsageError
from esm_host.extension.settings import Settings
from esm_host.sampling.random import RandomSampler
from esm_host.transport import devices
from esm_host.transport.base import Profiler
from esm_host.transport.distinct import check_distinct
from esm_host.transport.limits import check_campaign, check_spec
from esm_host.transport.patient import PatientProfiler
from esm_models.space import SearchSpace
from esm_protos import older_peers
from esm_protos.messages import DeviceInfo, MeasureSpec

PATIENCE_S = 60.0


@dataclass(frozen=True, eq=False)
class CampaignDevices:
    """Devices of a campaign, connected and reserved.

    Attributes:
        answers: of those that are there, by name.
        missing: why the others are not.
    """

    members: Sequence[Member]
    answers: Mapping[str, DeviceInfo]
    missing: Mapping[str, EsmError]

    @property
    def first(self) -> DeviceInfo:
        return next(iter(self.answers.values()))


@dataclass(frozen=True, eq=False)
class CampaignSession:
    """Store of a campaign, and what measures into it."""

    store: Store
    measurements: Measurements
    collector: Collector


@contextmanager
def connected(
    settings: MeasuringSettings,
    space: SearchSpace,
    resume: bool,
    patience_s: float,
    wait: bool,
    warn: Callable[[str], None],
) -> Iterator[CampaignDevices]:
    """A campaign's devices, reserved until the end.

    Args:
        resume: they measured before, and will come back if they are gone.
        patience_s: how long to wait for a device that went away.
        wait: False gives up on a device that somebody else uses.

    Raises:
        UsageError: a device cannot do what is asked, or two names lead to one agent.
        BusyError: somebody else uses it, and ``wait`` is False.
        DeviceError: it is gone or refuses.
    """
    with ExitStack() as stack:
        members = [
            Member(name, PatientProfiler(impatient, patience_s, warn), impatient)
            for name in devices.members(settings.device)
            for impatient in [stack.enter_context(devices.connect(name))]
        ]
        largest = space.build(space.extremes()[1])

        def reserve(profiler: Profiler, device: DeviceInfo) -> None:
            check_spec(device, settings.spec)
            check_campaign(device.limits, settings.block_size, settings.references, largest)
            profiler.reserve(f"profile {space.name}", wait)

        yield CampaignDevices(members, *_ask_all(members, reserve, resume))


@contextmanager
def open_session(
    settings: Settings,
    folder: RunFolder,
    space: SearchSpace,
    found: CampaignDevices,
    watcher: collect.Watcher,
) -> Iterator[CampaignSession]:
    """A campaign's store and what measures into it, with its reference models planned.

    Raises:
        DatasetError: the store is unusable.
        MismatchError: it was made with other settings, or by other devices.
    """
    with closing(folder.open_store(make=True)) as store:
        _check_store(store, settings, space, folder)
        if REFERENCE_ROUND not in store.plan():
            rng = np.random.default_rng([settings.seed, 2**32])
            sampler = RandomSampler(space, settings.depth_bins(space))
            store.add_plan(REFERENCE_ROUND, sampler.sample(settings.references, rng))
        measurements = Measurements(store, settings.spec, settings.raw)
        collector = Collector(
            store,
            measurements,
            found.members,
            space,
            store.plan()[REFERENCE_ROUND],
            settings,
            watcher,
        )
        collector.admit(found.answers, found.missing)
        yield CampaignSession(store, measurements, collector)


def _ask_all(
    members: Sequence[Member], reserve: Callable[[Profiler, DeviceInfo], None], resume: bool
) -> tuple[dict[str, DeviceInfo], dict[str, EsmError]]:
    """The devices that answer, and why the others do not, by name.

    Raises:
        EsmError: nobody answers; the first one's. Or a device cannot do what is asked, or two
            names lead to one agent.
    """
    # A new campaign's device that is not there is a mistake; an old one's will come back.
    for patient in [None, members[0]] if resume else [None]:
        devices: dict[str, DeviceInfo] = {}
        errors: dict[str, EsmError] = {}
        told: dict[str, DeviceInfo] = {}
        for member in members:
            profiler = member.profiler if member is patient else member.at_once
            try:
                device = told[member.name] = profiler.device_info()
            except (BusyError, DeviceError) as error:
                errors[member.name] = error
                continue
            check_distinct(told)
            try:
                reserve(profiler, device)
                devices[member.name] = device
            except (BusyError, DeviceError) as error:
                errors[member.name] = error
            except UsageError as error:
                if len(members) == 1:
                    raise
                raise UsageError(f"{member.name}: {error.marked}") from error
        if devices:
            return devices, errors
    raise next(iter(errors.values()))


def _check_store(
    store: Store, settings: MeasuringSettings, space: SearchSpace, folder: RunFolder
) -> None:
    """Raises MismatchError unless the store was made by the same space and settings."""
    identity = {
        **space.settings(),
        **_spec_facts(settings.spec),
        "references": settings.references,
        # Notices a user's own space that was edited since.
        "graph": hashlib.sha256(space.build(space.extremes()[1])).hexdigest(),
    }
    known = store.fact("campaign")
    if known is None:
        store.add_fact("campaign", identity)
        return
    # What its version did not know yet was as it is by default now.
    known = {**_spec_facts(MeasureSpec()), **older_peers.spec_json(known)}
    if known != identity:
        differs = [name for name, value in identity.items() if known.get(name) != value]
        raise MismatchError(
            f"{folder.path} was measured with other settings ({', '.join(differs)}): restore "
            f"them, or give another {argument('run')}"
        )


def _spec_facts(spec: MeasureSpec) -> dict[str, Any]:
    """A spec by its fields. ``references`` has another name here: that one is taken by the number
    of the campaign's own reference models."""
    facts = spec.to_json()
    return {**facts, "agent_references": facts.pop("references")}
