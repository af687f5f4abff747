"""Python interface of the commands, exported by ``esm_host``. Nothing here prints."""

from __future__ import annotations

import json
import operator
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack, cast

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.dataset.settings import ENERGY_TIME_S
from esm_host.errors import DatasetError, UsageError
from esm_host.extension.settings import Changes, Settings
from esm_host.timing import (
    TimingSettings,
    TimingWatcher,
    for_models,
    parse_duration,
    read_request,
    time_models,
    timing_spec,
)
from esm_host.timing.compare import Comparison, check_timing
from esm_host.timing.compare import compare as compare_timings
from esm_host.timing.frames import TimingFile, TimingInterrupt, load_timing
from esm_host.timing.given import FROM_MEMORY
from esm_host.timing.model_file import ModelFile, read_model_file
from esm_host.timing.provider_options import executions
from esm_host.timing.session_options import session_settings
from esm_host.timing.spec import WARMUP
from esm_host.transport import devices
from esm_host.typed import typed
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.messages import MOST_ENERGY_S, Progress, RunOrder
from esm_protos.nearest import nearest, unknown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from onnx import ModelProto, OptionalProto, SequenceProto, TensorProto
    from torch import nn

    from esm_host.exporting.files import Exported
    from esm_host.report.page import Page
    from esm_host.research.study.results import Study
    from esm_host.search.record import SearchRecord

# Strings: the classes of onnx and torch load only when needed.
Model: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | nn.Module"
"""ONNX model as a file path, bytes or ``ModelProto``; or a torch module."""

Value: TypeAlias = "ArrayLike | TensorProto | SequenceProto | OptionalProto"
Inputs: TypeAlias = (
    "Mapping[str, Value] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
)
"""Values by input name, or paths of files and folders with values."""

Timing: TypeAlias = "TimingFile | str | os.PathLike[str]"
"""Result of :func:`time`, or the path of its file."""

OnProgress: TypeAlias = "Callable[[str, Progress], None]"

_MOST_PROFILE_RUNS = 1000


@typed
def time(
    models: Model | Sequence[Model] | Mapping[str, Model],
    device: str | Sequence[str] = "local",
    *,
    example_inputs: Any = None,
    batch: int | Sequence[int] = (),
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    dims: Mapping[str, int | Sequence[int]] | None = None,
    threads: int | Sequence[int] = 1,
    inputs: Inputs | None = None,
    runs: int | None = None,
    precision_percent: float | None = None,
    max_runs: int | None = None,
    max_time_s: float | None = None,
    sessions: int | None = None,
    spread: str | float | None = None,
    raw: bool = False,
    protocol: Literal["interleaved", "sequential"] = "interleaved",
    warmup: int = WARMUP,
    trim: float = 0.2,
    provider: str | Sequence[str] = "cpu",
    ep_options: Mapping[str, object] | None = None,
    tf32: bool = False,
    cuda_graph: bool = False,
    allow_fallback: bool = False,
    opt_level: Literal["disable", "basic", "extended", "layout", "all"] = "all",
    execution_mode: Literal["sequential", "parallel"] = "sequential",
    inter_op: int | None = None,
    session_options: Mapping[str, object] | None = None,
    free_dims: Mapping[str, int] | None = None,
    timeout_s: float = 60.0,
    load_timeout_s: float = 600.0,
    seed: int = 0,
    profile_runs: int = 0,
    energy: bool = False,
    energy_time_s: float | None = None,
    wait: bool = True,
    on_progress: OnProgress | None = None,
) -> TimingFile:
    """Time ONNX models on devices, interleaved with each other and on all devices at once.

    Without ``runs`` each model is measured until it reaches the precision, within the limits.

    Args:
        models: One or several models, or a mapping from names to models. Unnamed models from
            memory are called ``model-1``, ``model-2``... A ``torch.nn.Module`` is exported first,
            with ``example_inputs``.
        example_inputs: Inputs of torch modules: a tensor, or a tuple of the arguments of
            ``forward``.
        device: ``"local"``, ``"host:port"`` or a name; or several.
        batch: Sizes of the first dimension of inputs that leave it free.
        shapes: Dimensions of inputs by name; None for a free dimension.
        dims: Sizes of named dimensions, ``{"H": [320, 640], "W": 640}``; all combinations are
            cases. A dimension without a size is 1, and ``warnings`` say so.
        threads: Numbers of threads of the runtime; several are several cases.
        inputs: Values by input name: arrays, or ONNX's TensorProto, SequenceProto and
            OptionalProto. Or paths of an ``.npz``, of files with such protos, or of folders of
            them. Missing values are random.
        runs: Exact number of counted runs of every model and case; None measures to the
            precision.
        precision_percent: Half-width of the 95 % confidence interval, percent of the latency;
            None for 2.
        max_runs: Largest number of runs of one model; None for 100,000.
        max_time_s: Largest measuring time of all models together, s; None for 20, plus 2 per
            further model.
        sessions: Number of sessions of each model in a block; None for 2.
        spread: Time over which 3 to 10 blocks are spread evenly, ``"10m"`` or seconds; None for
            one block. Others can use the device between blocks.
        raw: Whether latencies and intervals are as measured instead of at the device's usual
            pace.
        protocol: ``"interleaved"``, or ``"sequential"`` for all runs of a model in a row.
        warmup: Largest number of warm-up runs before each visit.
        trim: Share of the runs dropped at each end.
        provider: Execution provider, one of the device's; several are several cases.
        ep_options: Values of the provider's own options by name, such as ``{"tf32": True}``. With
            several providers, ``{"cuda:tf32": True}``.
        tf32: Deprecated: ``ep_options={"tf32": True}``.
        cuda_graph: Deprecated: ``ep_options={"cuda_graph": True}``.
        allow_fallback: Whether to measure models with nodes on another provider.
        opt_level: Level of graph optimization.
        execution_mode: ``"sequential"``, or ``"parallel"`` to run independent nodes at a time.
        inter_op: Number of nodes that run at a time, with ``"parallel"`` only; None for the
            device's number of processors.
        session_options: Config entries of the runtime's ``SessionOptions``, such as
            ``{"session.intra_op.allow_spinning": False}``.
        free_dims: Sizes of named dimensions that are fixed before the graph is optimized.
        timeout_s: Time limit for one inference, s.
        load_timeout_s: Time limit for loading a model, s; some providers compile for minutes.
        seed: Random seed of the inputs and the visiting order.
        profile_runs: Number of profiled runs, separate from the timed ones; 0 for none.
        energy: Whether to measure the energy of each model, where the device has a sensor.
        energy_time_s: Time per model for its energy, s; None for 40. The device is idle for half
            of it.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        on_progress: Callback with the device and its progress, from the devices' threads.

    Returns:
        Data frames of the results. A failed model has a ``failure``. If one of several devices
        fails, it has an ``error`` in ``.devices``.

    Raises:
        UsageError: an argument is invalid.
        BusyError: the only device is in use and ``wait`` is False.
        DeviceError: the only device is unreachable or refuses.
        TimingInterrupt: a KeyboardInterrupt ended the timing; it holds the results so far.

    Example::

        timing = esm_host.time(["small.onnx", "large.onnx"], "pi4", batch=[1, 8])
        timing.results()[["label", "trimmed_mean_ms", "verdict"]]
    """
    if protocol not in (known := [p.value for p in RunOrder]):
        raise UsageError(unknown("protocol", protocol, known))
    if not 0 <= profile_runs <= _MOST_PROFILE_RUNS:
        raise UsageError(
            f"{argument('profile_runs')} {profile_runs} is outside 0 to {_MOST_PROFILE_RUNS}"
        )
    if energy_time_s is not None and not 1 <= energy_time_s <= MOST_ENERGY_S:
        raise UsageError(
            f"{argument('energy_time_s')} {energy_time_s:g} is outside 1 to {MOST_ENERGY_S:g}"
        )
    if energy_time_s is not None and not energy:
        raise UsageError(
            f"{argument('energy_time_s')} {energy_time_s:g} has no effect without "
            f"{argument('energy')}: add it, or leave {argument('energy_time_s')} out"
        )
    energy_s = (energy_time_s or ENERGY_TIME_S) if energy else 0.0
    names = [device] if isinstance(device, str) else list(device)
    counts = _several(threads)
    if not names or not counts:
        raise UsageError("an empty list of devices or threads measures nothing: give one")
    providers = executions(
        [provider] if isinstance(provider, str) else list(provider),
        ep_options or {},
        tf32=tf32,
        cuda_graph=cuda_graph,
    )
    session = session_settings(
        opt_level, execution_mode, inter_op, session_options or {}, free_dims or {}
    )
    spec = timing_spec(
        runs,
        precision_percent,
        max_runs,
        max_time_s,
        sessions,
        run_order=RunOrder(protocol),
        warmup=warmup,
        trim=trim,
        threads=counts[0],
        provider=providers[0].provider,
        provider_options=providers[0].options,
        allow_fallback=allow_fallback,
        session=session,
        model_timeout_s=timeout_s,
        load_timeout_s=load_timeout_s,
        seed=seed,
    )
    spread_s = 0.0 if spread is None else parse_duration(spread)
    with TemporaryDirectory(prefix="esm-") as text:
        folder = Path(text)
        request = read_request(
            _files(models, folder, example_inputs),
            _several(batch),
            _shapes(shapes),
            counts,
            _fed(inputs, folder),
            folder,
            _dims(dims),
            providers,
            session.free_dims,
        )
        if not request:
            raise UsageError("an empty list of models measures nothing: give one")
        spec = for_models(spec, len(request) // len(providers), max_time_s)
        timing = time_models(
            devices.connect,
            names,
            request,
            spec,
            TimingSettings(profile_runs, wait, raw, spread_s, energy_s),
            TimingWatcher() if on_progress is None else TimingWatcher(on_progress),
        )
    file = TimingFile.of(timing.to_json())
    if timing.interrupted:
        raise TimingInterrupt(file)
    return file


@typed
def compare(
    base: Timing | Sequence[Timing],
    new: Timing | Sequence[Timing],
    *,
    confidence: float = 0.95,
    tolerance_percent: float = 2.0,
    allow: Sequence[str] = (),
    match: Mapping[str, str] | None = None,
    max_latency_ms: Mapping[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare timings and report models that became slower or now fail.

    Args:
        base: Results of :func:`time`, or paths of their files. Several timings show the variation
            between timings of one model.
        new: Results or paths of the new timings, one or several.
        confidence: Confidence level of the intervals, between 0 and 1.
        tolerance_percent: Tolerated slowdown; a model is slower if the lower end of its interval
            exceeds it.
        allow: Names of settings and device facts that may differ, ``["hostname"]``; ``"cases"``
            compares the common cases.
        match: New names of renamed models, ``{"v1.onnx": "v2.onnx"}``; None for none.
        max_latency_ms: Latency limits in the new timings, ms, by model; None for none.
        limits: Limits of other metrics in the new timings, by key, ``{"peak_rss_bytes": 2e8}``;
            None for none.

    Raises:
        UsageError: an argument is invalid, or a file does not exist.
        DatasetError: a file is not a timing.
        DifferentError: something other than the models differs.

    Example::

        comparison = esm_host.compare("main.json", esm_host.time("model.onnx", "pi4"))
        assert not comparison.regressions
    """
    sides = [
        [
            check_timing(file.data, str(file.path or "the timing"))
            for file in map(_timing, _timings(given))
        ]
        for given in (base, new)
    ]
    return compare_timings(
        sides[0], sides[1], confidence, tolerance_percent, allow, match, max_latency_ms, limits
    )


@typed
def profile(
    settings: Settings,
    run: str | os.PathLike[str],
    *,
    store: str = "",
    patience_s: float = 60.0,
    wait: bool = True,
    watcher: object | None = None,
) -> Run:
    """Train a latency predictor for a device with as few measured models as possible.

    If it is interrupted, its measurements are kept, and :func:`resume` continues.

    Args:
        settings: Settings of the campaign.
        run: Folder of the campaign, which is created.
        store: URL of a PostgreSQL database for a shared store; empty for a file in the folder.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Object with any of the methods of :class:`Watcher`; None for none.

    Returns:
        The campaign; ``.converged`` is True if it reached its target.

    Raises:
        UsageError: a setting is invalid.
        ModelsError: a setting of the search space is invalid.
        RunExistsError: the folder or the shared store already holds a campaign of this name.
        BusyError: the folder is in use, or the device is in use and ``wait`` is False.
        DeviceError: the device is unreachable or refuses.

    Example::

        settings = esm_host.Settings("pi4", space="resnet", resolution=64)
        run = esm_host.profile(settings, "runs/pi4")
        run.predict(run.sample(5))
    """
    from esm_host.workflows.profile import run_campaign

    folder = RunFolder(Path(run), store)
    run_campaign(settings, folder, False, patience_s, wait, watcher)
    return load_run(folder.path)


@typed
def resume(
    run: Run | str | os.PathLike[str],
    *,
    finish: bool = False,
    patience_s: float = 60.0,
    wait: bool = True,
    watcher: object | None = None,
    **changes: Unpack[Changes],
) -> Run:
    """Resume a campaign, or evaluate a finished one again; nothing is measured twice.

    Args:
        run: The campaign or its folder.
        finish: Whether to train on the measurements so far, without a device; the campaign can be
            resumed later.
        patience_s: Time to wait for an unreachable device, s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.
        watcher: Object with any of the methods of :class:`Watcher`; None for none.
        **changes: New values of ``device``, ``target_accuracy_percent``, ``max_models``,
            ``verify``, ``budget_s``, ``train_on``, ``weights``, ``predictor``, ``encoding``,
            ``group_tolerance_percent`` and ``raw``, as in :class:`Settings`. A setting that is
            None keeps its value.

    Raises:
        UsageError: the folder holds no campaign, or a value is out of range.
        MismatchError: the device is another one.
        ModelsError, BusyError, DeviceError: as in :func:`profile`.

    Example::

        run = esm_host.resume("runs/pi4", target_accuracy_percent=97)
    """
    from esm_host.workflows.profile import finish_campaign, run_campaign

    folder = RunFolder(run.path if isinstance(run, Run) else Path(run))
    known = Changes.__annotations__
    for name in changes:
        if name not in known:
            raise UsageError(
                f"resume changes no {name}: {nearest(name, known)}choose {', '.join(known)}"
            )
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    folder.refresh()
    settings = replace(folder.read_settings(), **given)
    if finish:
        finish_campaign(settings, folder, watcher)
    else:
        run_campaign(settings, folder, True, patience_s, wait, watcher)
    return load_run(folder.path)


@typed
def write_report(
    source: Run | TimingFile | SearchRecord | Study | Comparison | str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
) -> Path:
    """Write an HTML report in a single file, which needs no network.

    Args:
        source: Campaign, search, timing, study or comparison, or its folder or file.
        output: Path of the report.

    Returns:
        Path of the report.

    Raises:
        UsageError: the source or the folder of the report does not exist.
        DatasetError: the source is damaged.

    Example::

        esm_host.write_report(timing, "pi4.html")
    """
    from esm_host.report.page import check_source, render

    output, path = Path(output), None
    if output.is_dir() or not output.parent.is_dir():
        raise UsageError(f"{argument('output')} {output}: give a file in a folder that exists")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        check_source(path)
        source = _opened(path)
    try:
        html = render(_page(source), version("esm-profiler"), path)
        output.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    return output


def _page(source: Run | TimingFile | SearchRecord | Study | Comparison) -> Page:
    from esm_host.report.campaign import campaign_page
    from esm_host.report.comparison import comparison_page
    from esm_host.report.search import search_page
    from esm_host.report.timing import timing_page
    from esm_host.research.study.page import study_page
    from esm_host.research.study.results import Study

    if isinstance(source, Run):
        return campaign_page(source)
    if isinstance(source, TimingFile):
        return timing_page(source)
    if isinstance(source, Comparison):
        return comparison_page(source)
    return study_page(source) if isinstance(source, Study) else search_page(source)


@typed
def export(
    source: Run | SearchSpace | str | os.PathLike[str],
    architectures: Sequence[Architecture | Mapping[str, Any] | str],
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Exported]:
    """Export networks for other tools: ONNX with weights, torch modules to train, JSON.

    Args:
        source: Campaign, its folder, or the search space of the architectures.
        architectures: Architectures, their JSON or short forms, or mappings that hold one as
            ``"architecture"``; their further values are copied to the index.
        output: Folder, which is created. It gets a folder per architecture, with ``model.onnx``,
            ``model.py`` and ``weights.pt``, and ``architectures.json``.
        formats: Formats of ``"onnx"``, ``"torch"``, ``"json"``; None for all that the space
            supports.
        seed: Random seed of the weights.

    Returns:
        Folder and number of parameters of each architecture.

    Raises:
        UsageError: an argument is invalid, the folder is not empty, or a network has no torch
            form.
        ModelsError: an architecture is not in the search space.

    Example::

        run = esm_host.load_run("runs/pi4")
        esm_host.export(run, run.sample(3), "chosen", formats=["onnx"])
    """
    from esm_host.exporting.files import export_architectures

    return export_architectures(_space(source), architectures, Path(output), formats, seed)


@typed
def torch_module(
    source: Run | SearchSpace | str | os.PathLike[str],
    architecture: Architecture | Mapping[str, Any] | str,
    *,
    seed: int | None = None,
) -> nn.Module:
    """Return the network of an architecture as a torch module to train, with batch normalisation.

    Args:
        source: Campaign, its folder, or the search space of the architecture.
        architecture: Architecture, its JSON or its short form.
        seed: Random seed of the weights, as in :func:`export`; None keeps torch's initial
            weights.

    Raises:
        UsageError: the network is int8, or has an operator without a torch form.
        ModelsError: the architecture is not in the search space.

    Example::

        network = esm_host.torch_module(run, run.sample(1)[0])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    """
    from functools import partial

    from esm_host.exporting.torch_module import build, weights_of
    from esm_host.exporting.torch_source import torch_source
    from esm_protos.weights import draw_weights

    space = _space(source)
    architecture = space.read(architecture)
    written = torch_source(space, architecture)
    network = build(written, f"esm_network_{architecture.key}")
    if seed is not None:
        network.load_state_dict(weights_of(written, partial(draw_weights, seed=seed)))
    return network


def _space(source: Run | SearchSpace | str | os.PathLike[str]) -> SearchSpace:
    if isinstance(source, SearchSpace):
        return source
    return (source if isinstance(source, Run) else load_run(Path(source))).space


def _opened(path: Path) -> Run | TimingFile | SearchRecord | Study | Comparison:
    from esm_host.research.study.results import StudyFolder, load_study
    from esm_host.search.record import holds_search, load_search

    if path.is_dir():
        if StudyFolder(path).manifest.exists():
            return load_study(path)
        return load_search(path) if holds_search(path) else load_run(path)
    return _comparison(path) or load_timing(path)


def _comparison(path: Path) -> Comparison | None:
    """Read a comparison; None if the file is something else.

    Raises:
        DatasetError: the comparison is damaged, or of another version.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("kind") != "comparison":
        return None
    try:
        return Comparison.from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a comparison that this program reads ({error}): compare again with "
            "esm-host compare --json"
        ) from error


def _timings(given: Timing | Sequence[Timing]) -> Sequence[Timing]:
    return [given] if isinstance(given, TimingFile | str | os.PathLike) else list(given)


def _timing(source: Timing) -> TimingFile:
    return source if isinstance(source, TimingFile) else load_timing(Path(source))


def _several(values: int | Sequence[int]) -> tuple[int, ...]:
    try:
        return (operator.index(cast("int", values)),)
    except TypeError:
        return tuple(map(operator.index, cast("Sequence[int]", values)))


def _shapes(shapes: Mapping[str, Sequence[int | None]] | None) -> list[str]:
    """Return shapes in the form of the command line."""
    return [
        f"{name}:{'x'.join('N' if dim is None else str(dim) for dim in dims)}"
        for name, dims in (shapes or {}).items()
    ]


def _dims(dims: Mapping[str, int | Sequence[int]] | None) -> list[str]:
    """Return dimensions in the form of the command line."""
    return [f"{name}={','.join(map(str, _several(sizes)))}" for name, sizes in (dims or {}).items()]


def _fed(inputs: Inputs | None, folder: Path) -> list[Path]:
    """Return the paths of values; values from memory are written to the folder."""
    if inputs is None or (isinstance(inputs, Mapping) and not inputs):
        return []
    if isinstance(inputs, str | os.PathLike):
        return [Path(inputs)]
    if not isinstance(inputs, Mapping):
        return [Path(path) for path in inputs]
    import numpy as np

    path = folder / FROM_MEMORY
    with zipfile.ZipFile(path, "w") as archive:  # np.savez has arguments of its own among names
        for name, value in inputs.items():
            held: Any = value if hasattr(value, "SerializeToString") else np.asanyarray(value)
            if isinstance(held, np.ndarray) and held.dtype.kind == "V":  # of ml_dtypes
                from onnx import numpy_helper

                held = numpy_helper.from_array(held)
            if not isinstance(held, np.ndarray):
                archive.writestr(zipfile.ZipInfo(f"{name}.pb"), held.SerializeToString())
                continue
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, held, allow_pickle=True)
    return [path]


def _files(
    models: Model | Sequence[Model] | Mapping[str, Model], folder: Path, example_inputs: Any
) -> list[Path | ModelFile]:
    """Return the models of a request; models from memory are written to the folder."""
    if isinstance(models, Mapping):
        named = enumerate(models.items())
        return [
            _file(model, name, folder / f"{n}.onnx", example_inputs) for n, (name, model) in named
        ]
    alone = not isinstance(models, Sequence) or isinstance(models, str | bytes)
    given = cast("Sequence[Model]", [models] if alone else models)
    return [
        Path(model)
        if isinstance(model, str | os.PathLike)
        else _file(model, f"model-{n}", folder / f"{n}.onnx", example_inputs)
        for n, model in enumerate(given, start=1)
    ]


def _file(model: Model, name: str, written: Path, example_inputs: Any) -> ModelFile:
    if isinstance(model, str | os.PathLike):
        return replace(read_model_file(Path(model)), path=name)
    torch = sys.modules.get("torch")  # who has a module has imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        from esm_host.exporting.from_torch import onnx_of

        if example_inputs is None:
            raise UsageError(
                f"{name} is a torch module: give example_inputs, a tensor or a tuple of what its "
                "forward takes"
            )
        model = onnx_of(model, example_inputs, name)
    try:
        data = model if isinstance(model, bytes) else cast("ModelProto", model).SerializeToString()
    except ValueError as error:  # protobuf's limit is 2 GB
        raise UsageError(
            f"{name} is too large ({error}): save it with save_as_external_data=True, and give "
            "the path"
        ) from error
    written.write_bytes(data)
    return read_model_file(written, name)
