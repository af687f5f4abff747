"""Session of a campaign: its devices and its store."""

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
from esm_host.timing.energy import has_energy_sensor, missing_energy, too_slow
from esm_host.timing.inputs import check_free_dims
from esm_host.transport import devices
from esm_host.transport.base import Profiler
from esm_host.transport.distinct import check_distinct
from esm_host.transport.limits import check_campaign, check_energy, check_spec
from esm_host.transport.patient import PatientProfiler
from esm_models.space import SearchSpace
from esm_protos import older_peers
from esm_protos.messages import DeviceInfo, MeasureSpec

PATIENCE_S = 60.0


@dataclass(frozen=True, eq=False)
class CampaignDevices:
    """Devices of a campaign, connected and reserved.

    Attributes:
        members: All devices of the campaign.
        answers: Reachable devices, by name.
        missing: Errors of the unreachable devices, by name.
    """

    members: Sequence[Member]
    answers: Mapping[str, DeviceInfo]
    missing: Mapping[str, EsmError]

    @property
    def first(self) -> DeviceInfo:
        return next(iter(self.answers.values()))


@dataclass(frozen=True, eq=False)
class CampaignSession:
    """Open store of a campaign, with its measurements and its collector."""

    store: Store
    measurements: Measurements
    collector: Collector


@contextmanager
def connect_devices(
    settings: MeasuringSettings,
    space: SearchSpace,
    resume: bool,
    patience_s: float,
    wait: bool,
    warn: Callable[[str], None],
) -> Iterator[CampaignDevices]:
    """Connect to a campaign's devices and reserve them until the context ends.

    Args:
        settings: Settings of measuring.
        space: Search space of the campaign.
        resume: Whether the campaign is resumed; unreachable devices are then waited for.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        warn: Callback for warnings.

    Raises:
        UsageError: a device does not support the settings, or two names lead to one agent.
        BusyError: the device is in use and ``wait`` is False.
        DeviceError: the device is unreachable or refuses.
    """
    with ExitStack() as stack:
        members = [
            Member(name, PatientProfiler(impatient, patience_s, warn), impatient)
            for name in devices.members(settings.device)
            for impatient in [stack.enter_context(devices.connect(name))]
        ]
        largest = space.build(space.extremes()[1])
        check_free_dims(settings.spec.session.free_dims, {space.name: largest})

        def reserve(profiler: Profiler, device: DeviceInfo) -> None:
            check_spec(device, settings.spec)
            check_campaign(device.limits, settings.block_size, settings.references, largest)
            if settings.energy_s and not has_energy_sensor(device):
                asked = f"{argument('metric')} {settings.metric}"
                raise UsageError(f"{asked}: {missing_energy(device)}")
            if reason := settings.energy_s and too_slow(
                device, settings.spec.provider, settings.energy_s
            ):
                raise UsageError(reason)
            models = settings.block_size + settings.references
            check_energy(device.limits, settings.spec, settings.energy_s, models)
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
    """Open a campaign's store and its collector, with the reference models planned.

    Args:
        settings: Settings of the campaign.
        folder: Folder of the campaign.
        space: Search space of the campaign.
        found: Connected devices.
        watcher: Receiver of events.

    Raises:
        DatasetError: the store is unusable.
        MismatchError: the store was made with other settings or devices.
    """
    with closing(folder.open_store(make=True)) as store:
        check_store(store, settings, space, folder)
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
    """Return the reachable devices, and the errors of the others, by name.

    Raises:
        EsmError: no device is reachable (the first error), a device does not support the
            settings, or two names lead to one agent.
    """
    # A new campaign reports an unreachable device at once. A resumed one waits for its return.
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


def check_store(
    store: Store, settings: MeasuringSettings, space: SearchSpace, folder: RunFolder
) -> None:
    """Check that the store was made with the same space and settings.

    Raises:
        MismatchError: a setting differs.
    """
    identity = {
        **space.settings(),
        **_spec_facts(settings.spec),
        "references": settings.references,
        # Detects edits of a user's own space.
        "graph": hashlib.sha256(space.build(space.extremes()[1])).hexdigest(),
    }
    known = store.fact("campaign")
    if known is None:
        store.add_fact("campaign", identity)
        return
    # Settings that the older version lacked had today's defaults.
    known = {**_spec_facts(MeasureSpec()), **older_peers.spec_json(known)}
    if known != identity:
        differs = [name for name, value in identity.items() if known.get(name) != value]
        raise MismatchError(
            f"{folder.path} was measured with other settings ({', '.join(differs)}): restore "
            f"them, or give another {argument('run')}"
        )


def _spec_facts(spec: MeasureSpec) -> dict[str, Any]:
    """Return the fields of a spec that decide latencies.

    ``references`` is renamed, because that name holds the number of the campaign's own reference
    models.
    """
    facts = spec.to_json()
    del facts["load_timeout_s"]
    return {**facts, "agent_references": facts.pop("references")}
