"""Puts a campaign together from its parts, runs it, and writes what comes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import typer

from esm_host.bins import DepthBins
from esm_host.cli.errors import INTERRUPTED
from esm_host.cli.folder import RunFolder
from esm_host.cli.live import Live, print_bins
from esm_host.dataset.collect import Collector
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.dataset.table import block_table
from esm_host.encoding import Encoder, make_encoder
from esm_host.errors import UsageError
from esm_host.extension.loop import Loop, Outcome
from esm_host.extension.settings import Settings
from esm_host.predictors.mlp import MLPPredictor
from esm_host.report import plots
from esm_host.report.result import campaign_result, write_bytes, write_json
from esm_host.sampling import SAMPLERS, RandomSampler
from esm_host.transport import devices
from esm_host.transport.base import Profiler
from esm_host.transport.patient import PatientProfiler
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.messages import DeviceInfo

TARGET_NOT_REACHED = 3


def run_campaign(
    settings: Settings, folder: RunFolder, resume: bool, patience_s: float, live: Live
) -> int:
    """Runs a campaign to its end, or goes on with it; returns the exit code.

    Everything that can be wrong with the request is found before anything is measured.
    """
    space = load_space(
        settings.space,
        resolution=settings.resolution,
        width_mult=settings.width_mult,
        batch=settings.batch,
    )
    bins = DepthBins(space.min_depth, space.max_depth, settings.bins)
    encoder = make_encoder(settings.encoding, space)
    if settings.initial > space.count():
        raise UsageError(
            f"--initial {settings.initial} exceeds the space's {space.count()} architectures"
        )
    with devices.connect(settings.device) as impatient:
        profiler = PatientProfiler(impatient, patience_s, live.warn)
        # A new campaign's device that is not there is a mistake; an old one's will come back.
        device = (profiler if resume else impatient).device_info()
        folder.prepare(resume)
        with folder.locked():
            try:
                return _run(settings, folder, space, bins, encoder, profiler, device, live)
            except KeyboardInterrupt:
                live.warn(
                    f"interrupted; what was measured is kept: esm-host profile --run {folder.path} "
                    "--resume goes on"
                )
                return INTERRUPTED


def _run(
    settings: Settings,
    folder: RunFolder,
    space: SearchSpace,
    bins: DepthBins,
    encoder: Encoder,
    profiler: Profiler,
    device: DeviceInfo,
    live: Live,
) -> int:
    # First: a folder with settings is a campaign that can be resumed, however little it holds.
    write_json(folder.settings, settings.to_json())
    store = Store(folder.store)
    if REFERENCE_ROUND not in store.plan():
        rng = np.random.default_rng([settings.seed, 2**32])
        store.add_plan(REFERENCE_ROUND, RandomSampler(space, bins).sample(settings.references, rng))
    collector = Collector(
        store,
        profiler,
        space,
        settings.spec,
        store.plan()[REFERENCE_ROUND],
        settings.block_size,
        settings.reference_tolerance_percent / 100,
        settings.max_remeasurements,
        live,
    )
    loop = Loop(
        settings,
        store,
        collector,
        SAMPLERS[settings.sampling](space, bins),
        encoder,
        bins,
        lambda: MLPPredictor(seed=settings.seed),
        live,
    )
    outcome = loop.run()
    result = campaign_result(store, settings, device, outcome.converged)
    _write(folder, settings, bins, store, outcome, result)
    store.close()
    live.stop()
    print_bins(result["rounds"][-1], settings.target_accuracy_percent)
    unsure = int((~outcome.dataset.passed).sum())
    if unsure:
        typer.echo(f"{unsure} of {len(outcome.dataset)} models never passed quality control")
    typer.echo(
        f"{'converged' if outcome.converged else 'not converged'}: {outcome.reason} "
        f"({result['wall_seconds'] / 60:.1f} min, device busy "
        f"{result['device_busy_seconds'] / 60:.1f} min)"
    )
    typer.echo(f"result in {folder.result}; next: esm-host predict {folder.path} --sample 5")
    return 0 if outcome.converged else TARGET_NOT_REACHED


def _write(
    folder: RunFolder,
    settings: Settings,
    bins: DepthBins,
    store: Store,
    outcome: Outcome,
    result: dict[str, Any],
) -> None:
    """The predictor, the pictures and, last, the result."""
    assert isinstance(outcome.predictor, MLPPredictor)
    outcome.predictor.save(folder.predictor)
    write_bytes(folder.predictor_onnx, outcome.predictor.to_onnx())
    plots.predicted_against_measured(
        folder.plots["predicted_against_measured"], outcome.dataset, outcome.predicted_ms, bins
    )
    plots.accuracy_by_round(
        folder.plots["accuracy_by_round"], result["rounds"], settings.target_accuracy_percent
    )
    plots.reference_stability(
        folder.plots["reference_stability"],
        block_table(store, settings.spec),
        settings.reference_tolerance_percent,
    )
    write_json(folder.result, result)
