"""What the commands do, for Python: the names of ``esm_host`` itself. Nothing here prints."""

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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.errors import DatasetError, UsageError
from esm_host.extension.settings import Settings
from esm_host.timing import for_models, parse_duration, read_request, time_models, timing_spec
from esm_host.timing.compare import Comparison, check_timing
from esm_host.timing.compare import compare as compare_timings
from esm_host.timing.frames import TimingFile, TimingInterrupt, load_timing
from esm_host.timing.given import FROM_MEMORY
from esm_host.timing.model_file import ModelFile, read_model_file
from esm_host.timing.provider_options import given_options
from esm_host.timing.spec import WARMUP
from esm_host.transport import devices
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.messages import Progress, RunOrder

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from onnx import ModelProto, OptionalProto, SequenceProto, TensorProto
    from torch import nn

    from esm_host.exporting.files import Exported
    from esm_host.report.page import Page
    from esm_host.research.study.results import Study
    from esm_host.search.record import SearchRecord

    Model: TypeAlias = str | os.PathLike[str] | bytes | ModelProto | nn.Module
    """An ONNX model: the path of its file, its bytes, or as ``onnx`` has it; or a torch module."""

    Value: TypeAlias = ArrayLike | TensorProto | SequenceProto | OptionalProto
    Inputs: TypeAlias = (
        Mapping[str, Value] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    )
    """Values by the inputs' names, or paths of files and folders that hold them."""

    Timing: TypeAlias = TimingFile | str | os.PathLike[str]
    """What :func:`time` gave, or the path of what it saved."""

    OnProgress: TypeAlias = Callable[[str, Progress], None]

_MOST_PROFILE_RUNS = 1000


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
    provider: str = "cpu",
    ep_options: Mapping[str, object] | None = None,
    tf32: bool = False,
    cuda_graph: bool = False,
    allow_fallback: bool = False,
    timeout_s: float = 60.0,
    seed: int = 0,
    profile_runs: int = 0,
    wait: bool = True,
    on_progress: OnProgress | None = None,
) -> TimingFile:
    """Times ONNX models on devices: all in all cases together, in turn, on all devices at once.

    Without ``runs`` each is measured until it is known to the precision, within the limits.

    Args:
        models: one or several, or several by names of your own. Those from memory that have no
            name are called ``model-1``, ``model-2``... A ``torch.nn.Module`` is exported first,
            with ``example_inputs``.
        example_inputs: of torch modules: a tensor, or a tuple of what ``forward`` takes.
        device: ``"local"``, ``"host:port"`` or a name; or several.
        batch: sizes of the first dimension of inputs that leave it free.
        shapes: dimensions of inputs by name; None for one left free.
        dims: sizes of named dimensions, ``{"H": [320, 640], "W": 640}``; all combinations are
            cases. A dimension that nothing sets is taken as 1, and ``warnings`` say so.
        threads: of the runtime; several are several cases.
        inputs: by the inputs' names, arrays or ONNX's TensorProto, SequenceProto and OptionalProto;
            or paths of an ``.npz``, of such protos in files, or of folders of them. What is not
            given is random.
        runs: exactly so many counted runs of every model and case.
        precision_percent: half-width of the 95 % interval, percent of the latency; 2 by default.
        max_runs: of one model; 100,000 by default.
        max_time_s: seconds of measuring, all models together; by default 20, and 2 for each
            further model.
        sessions: of each model in a block; 2 by default.
        spread: spread 3 to 10 blocks evenly over this time, ``"10m"`` or seconds; others can use
            the device between them.
        raw: report latencies and intervals as measured, not at the device's usual pace.
        protocol: ``"interleaved"``, or ``"sequential"``: all runs of a model in a row.
        warmup: uncounted runs before each visit, at most.
        trim: share of the runs dropped at each end.
        provider: execution provider, one of the device's.
        ep_options: values of the provider's own options, by name, such as ``{"tf32": True}``.
        tf32: deprecated, ``ep_options={"tf32": True}``.
        cuda_graph: deprecated, ``ep_options={"cuda_graph": True}``.
        allow_fallback: measure also models of which nodes run on another provider.
        timeout_s: that one model may take at a time.
        seed: of the inputs and the visiting order.
        profile_runs: runs to profile, apart from those timed; 0 profiles nothing.
        wait: False gives up on a device that somebody else uses.
        on_progress: told the device and how far it is, from the devices' threads.

    Returns:
        Data frames of the results. A model that failed has its ``failure`` there; so has, among
        several devices, one that failed its ``error`` in ``.devices``.

    Raises:
        UsageError: something that was asked for makes no sense.
        BusyError: the only device is somebody else's and ``wait`` is False.
        DeviceError: the only device is gone or refuses.
        TimingInterrupt: a KeyboardInterrupt ended it early; it has what was measured.

    Example::

        timing = esm_host.time(["small.onnx", "large.onnx"], "pi4", batch=[1, 8])
        timing.results()[["label", "trimmed_mean_ms", "verdict"]]
    """
    if protocol not in (known := [p.value for p in RunOrder]):
        raise UsageError(f"{argument('protocol')} '{protocol}': choose {' or '.join(known)}")
    if not 0 <= profile_runs <= _MOST_PROFILE_RUNS:
        raise UsageError(
            f"{argument('profile_runs')} {profile_runs} is outside 0 to {_MOST_PROFILE_RUNS}"
        )
    names = [device] if isinstance(device, str) else list(device)
    counts = _several(threads)
    if not names or not counts:
        raise UsageError("an empty list of devices or threads measures nothing: give one")
    spec = timing_spec(
        runs,
        precision_percent,
        max_runs,
        max_time_s,
        sessions,
        protocol=RunOrder(protocol),
        warmup=warmup,
        trim=trim,
        threads=counts[0],
        provider=provider,
        provider_options=given_options(
            ep_options or {}, provider, tf32=tf32, cuda_graph=cuda_graph
        ),
        allow_fallback=allow_fallback,
        model_timeout_s=timeout_s,
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
        )
        if not request:
            raise UsageError("an empty list of models measures nothing: give one")
        spec = for_models(spec, len(request), max_time_s)
        timing = time_models(
            devices.connect,
            names,
            request,
            spec,
            profile_runs=profile_runs,
            wait=wait,
            on_progress=on_progress or _ignore,
            raw=raw,
            spread_s=spread_s,
        )
    file = TimingFile.of(timing.to_json())
    if timing.interrupted:
        raise TimingInterrupt(file)
    return file


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
    """Whether models became slower between timings, or fail now.

    Args:
        base, new: what :func:`time` gave, or paths of what it saved. One or several: several of
            each side tell what timings of one model vary by.
        confidence: of the intervals, above 0 and below 1.
        tolerance_percent: a model is slower when even its interval's lower end is above this.
        allow: names of settings and facts of devices that may differ, ``["hostname"]``;
            ``"cases"`` compares what all have.
        match: models that have another name in the new timings, ``{"v1.onnx": "v2.onnx"}``.
        max_latency_ms: that a model may take in the new timings, by its name.
        limits: of other metrics, by their keys, that every model must keep in the new timings,
            ``{"peak_rss_bytes": 2e8}``.

    Raises:
        UsageError: an argument makes no sense, or there is no such file.
        DatasetError: a file is no timing.
        DifferentError: something else than the models differs.

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


def profile(
    settings: Settings,
    run: str | os.PathLike[str],
    *,
    store: str = "",
    patience_s: float = 60.0,
    wait: bool = True,
    watcher: object | None = None,
) -> Run:
    """Learns a latency predictor for a device by measuring as few models as possible.

    Interrupted, it keeps what was measured, and :func:`resume` goes on from there.

    Args:
        settings: device (or group), search space, target and all else.
        run: folder of the campaign, which is made.
        store: URL of a PostgreSQL database that is to hold its records, for a team to share.
        patience_s: how long to wait for a device that went away.
        wait: False gives up on a device that somebody else uses.
        watcher: is told how it goes on: an object with any of the methods of :class:`Watcher`.

    Returns:
        The campaign; ``.converged`` says whether it reached its target.

    Raises:
        UsageError: something that was asked for makes no sense.
        ModelsError: likewise of the search space.
        RunExistsError: the folder holds a campaign already, or the shared store one of its name.
        BusyError: the device, without ``wait``, or the folder is in use.
        DeviceError: the device is gone or refuses.

    Example::

        settings = esm_host.Settings("pi4", space="resnet", resolution=64)
        run = esm_host.profile(settings, "runs/pi4")
        run.predict(run.sample(5))
    """
    from esm_host.workflows.profile import run_campaign

    folder = RunFolder(Path(run), store)
    run_campaign(settings, folder, False, patience_s, wait, watcher)
    return load_run(folder.path)


def resume(
    run: Run | str | os.PathLike[str],
    *,
    device: str | None = None,
    target_accuracy_percent: float | None = None,
    max_models: int | None = None,
    train_on: str | None = None,
    weights: str | None = None,
    predictor: str | None = None,
    encoding: str | None = None,
    group_tolerance_percent: float | None = None,
    raw: bool | None = None,
    finish: bool = False,
    patience_s: float = 60.0,
    wait: bool = True,
    watcher: object | None = None,
) -> Run:
    """Goes on with a campaign, or judges a finished one anew; measures nothing twice.

    Args:
        run: or its folder.
        device: another name of the same device.
        target_accuracy_percent, max_models, train_on, weights, predictor, encoding,
            group_tolerance_percent, raw: in place of those that it has, as :class:`Settings`
            describes them.
        finish: measure no more, and train on what is there; no device is needed, and the campaign
            can go on later.
        patience_s, wait, watcher: as in :func:`profile`.

    Raises:
        UsageError: there is no campaign, or a value is out of range.
        MismatchError: the device is another one.
        Others as :func:`profile`.

    Example::

        run = esm_host.resume("runs/pi4", target_accuracy_percent=97)
    """
    from esm_host.workflows.profile import finish_campaign, run_campaign

    folder = RunFolder(run.path if isinstance(run, Run) else Path(run))
    changes: dict[str, Any] = {
        "device": device,
        "target_accuracy_percent": target_accuracy_percent,
        "max_models": max_models,
        "train_on": train_on,
        "weights": weights,
        "predictor": predictor,
        "encoding": encoding,
        "group_tolerance_percent": group_tolerance_percent,
        "raw": raw,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    folder.refresh()
    settings = replace(folder.read_settings(), **given)
    if finish:
        finish_campaign(settings, folder, watcher)
    else:
        run_campaign(settings, folder, True, patience_s, wait, watcher)
    return load_run(folder.path)


def write_report(
    source: Run | TimingFile | SearchRecord | Study | Comparison | str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
) -> Path:
    """Writes one HTML file that opens in any browser, without a network.

    Args:
        source: a campaign, a search, a timing, a study or a comparison, or the folder or file of
            one.

    Returns:
        The file's path.

    Raises:
        UsageError: there is no such source, or no such folder to write to.
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


def export(
    source: Run | SearchSpace | str | os.PathLike[str],
    architectures: Sequence[Architecture | Mapping[str, Any] | str],
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Exported]:
    """Writes networks for other tools: as ONNX with weights, as torch modules to train, as JSON.

    Args:
        source: a campaign or its folder, or a search space: what the architectures are of.
        architectures: values, their JSON or short forms, or mappings that hold these as
            ``"architecture"``;
            what else is in these goes into the list.
        output: folder, which is made. In it a folder per architecture, with ``model.onnx``,
            ``model.py`` and ``weights.pt``, and ``architectures.json``.
        formats: of ``"onnx"``, ``"torch"``, ``"json"``; by default all that there are.
        seed: of the weights.

    Returns:
        Of each architecture its folder and number of parameters.

    Raises:
        UsageError: something that was asked for makes no sense, the folder holds something, or a
            network has no torch form.
        ModelsError: an architecture is not in the search space.

    Example::

        run = esm_host.load_run("runs/pi4")
        esm_host.export(run, run.sample(3), "chosen", formats=["onnx"])
    """
    from esm_host.exporting.files import export_architectures

    return export_architectures(_space(source), architectures, Path(output), formats, seed)


def torch_module(
    source: Run | SearchSpace | str | os.PathLike[str],
    architecture: Architecture | Mapping[str, Any] | str,
    *,
    seed: int | None = None,
) -> nn.Module:
    """The network of an architecture as a torch module to train, batch normalisation included.

    Args:
        source: a campaign or its folder, or a search space: what the architecture is of.
        architecture: a value, its JSON or its short form.
        seed: of the weights, those that :func:`export` writes; None leaves them as torch
            initialises them.

    Raises:
        UsageError: the network is of int8, or has an operator without a torch form.
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
    """Read a comparison; None where the file is something else.

    Raises:
        DatasetError: it is damaged, or of another version.
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
            f"{path} is no comparison that this program reads ({error}): compare again with "
            "esm-host compare --json"
        ) from error


def _timings(given: Timing | Sequence[Timing]) -> Sequence[Timing]:
    return [given] if isinstance(given, TimingFile | str | os.PathLike) else given


def _timing(source: Timing) -> TimingFile:
    return source if isinstance(source, TimingFile) else load_timing(Path(source))


def _ignore(device: str, progress: Progress) -> None:
    pass


def _several(values: int | Sequence[int]) -> tuple[int, ...]:
    try:
        return (operator.index(cast("int", values)),)
    except TypeError:
        return tuple(map(operator.index, cast("Sequence[int]", values)))


def _shapes(shapes: Mapping[str, Sequence[int | None]] | None) -> list[str]:
    """As they are written on the command line."""
    return [
        f"{name}:{'x'.join('N' if dim is None else str(dim) for dim in dims)}"
        for name, dims in (shapes or {}).items()
    ]


def _dims(dims: Mapping[str, int | Sequence[int]] | None) -> list[str]:
    """As they are written on the command line."""
    return [f"{name}={','.join(map(str, _several(sizes)))}" for name, sizes in (dims or {}).items()]


def _fed(inputs: Inputs | None, folder: Path) -> list[Path]:
    """Paths of values; those from memory are written to the folder, the same to the same file."""
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
    """As a request takes them; those from memory are written to the folder."""
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
