"""Checks of specs and models against a device's limits, before anything is sent.

The device repeats them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import DecodeError

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.graphs import too_large
from esm_protos.messages import DeviceInfo, Limits, MeasureSpec, Model
from esm_protos.providers import OptionError
from esm_protos.session_settings import SessionSettings
from esm_protos.text import counted
from esm_protos.v1 import onnx_view_pb2

_MOST_THREADS = 8
"""Maximum number of threads per processor; more spend their time on context switches."""


def check_spec(device: DeviceInfo, spec: MeasureSpec) -> None:
    """Check that the device can measure with a spec.

    Raises:
        UsageError: the device lacks a provider or option, or a limit is exceeded.
    """
    if reason := device.why_not(spec.provider):
        raise UsageError(f"{argument('provider')}: {reason}")
    provider = device.provider(spec.provider)
    try:
        provider.complete(spec.provider_options)
    except OptionError as error:
        raise UsageError(f"{argument('ep_options')} {error}") from error
    if spec.allow_fallback and not provider.may_fall_back:
        raise UsageError(
            f"{argument('allow_fallback')} has no effect with {argument('provider')} "
            f"{spec.provider}, which runs every node: leave it out"
        )
    check_threads(device, [spec.threads])
    check_session(device, spec.session)
    longest = device.limits.max_block_s
    if max(spec.max_block_s, spec.min_block_s) > longest:
        raise UsageError(
            f"{argument('max_time_s')} {spec.max_block_s:g}: the device stops blocks after "
            f"{longest:g} s. Give less, or start its agent with a longer --max-block-time"
        )


def check_energy(limits: Limits, spec: MeasureSpec, energy_s: float, models: int) -> None:
    """Check that the energy of models fits into a block.

    Args:
        limits: Limits of the device.
        spec: Settings of the block.
        energy_s: Time per model, s.
        models: Number of models.

    Raises:
        UsageError: it does not.
    """
    whole_s = energy_s * models + spec.max_block_s
    if energy_s and whole_s > limits.max_block_s:
        raise UsageError(
            f"{argument('energy_time_s')} {energy_s:g}: {counted(models, 'model')} then take "
            f"{whole_s:g} s, and the device stops blocks after {limits.max_block_s:g} s. Give "
            "less, or start its agent with a longer --max-block-time"
        )


def check_session(device: DeviceInfo, settings: SessionSettings) -> None:
    """Check that the device applies settings of sessions.

    Raises:
        UsageError: its agent is too old, an entry is refused, or there are too many threads.
    """
    if changes := settings.changes():
        if not device.session_settings:
            given = ", ".join(f"{name}={value}" for name, value in changes.items())
            raise UsageError(
                f"session settings ({given}): the device's agent is too old for them, upgrade "
                "esm-profiler there"
            )
        if reason := settings.refusal(argument):
            raise UsageError(f"{argument('session_options')} {reason}")
    check_threads(device, [settings.inter_op], "inter_op")


def check_threads(device: DeviceInfo, counts: Iterable[int], name: str = "threads") -> None:
    """Check numbers of threads against the device's processors.

    Raises:
        UsageError: there are more than 8 threads per processor.
    """
    processors = max(device.processors, 1.0)
    most = int(_MOST_THREADS * processors)
    for threads in counts:
        if threads > most:
            raise UsageError(
                f"{argument(name)} {threads}: the device has "
                f"{counted(processors, 'processor', '.3g')}, give {int(processors)}, or {most} at "
                "most"
            )


def check_models(
    limits: Limits,
    models: Sequence[Model],
    outlines: Mapping[bytes, onnx_view_pb2.Model | None] | None = None,
) -> None:
    """Check that the device accepts these models as one block.

    Args:
        limits: Limits of the device.
        models: Models of the block.
        outlines: Parsed models by SHA-256, None for a file that is not ONNX. Others are read.

    Raises:
        UsageError: a model, or all together, exceed a limit.
    """
    outlines = outlines or {}
    if len(models) > limits.max_block_models:
        raise UsageError(
            f"{counted(len(models), 'model')}: the device accepts {limits.max_block_models} per "
            "block, give fewer"
        )
    for model in {model.sha256: model for model in models}.values():
        if model.sha256 in outlines:
            excess = _excess(model.size_bytes, outlines[model.sha256], limits)
        else:
            data = model.data if isinstance(model.data, bytes) else model.data.read_bytes()
            excess = excess_of(data, limits)
        if excess:
            raise UsageError(f"{model.model_id}: {excess}: give a smaller model")
    size = sum(len(model.data) for model in models if isinstance(model.data, bytes))
    if size > limits.max_block_bytes:
        raise UsageError(
            f"models of {size / 1e6:.0f} MB in total: the device accepts "
            f"{limits.max_block_bytes / 1e6:.0f} MB per block, give fewer or smaller ones"
        )
    _check_files(limits, models)


def _check_files(limits: Limits, models: Sequence[Model]) -> None:
    files = {file.sha256: file.size_bytes for model in models for file in model.files}
    size = sum(files.values())
    if files and not limits.max_cache_bytes:
        raise UsageError(
            f"files of {size / 1e6:.1f} MB: the device has no cache for them. Start its agent with "
            "esm-agent serve --cache DIR --cache-size 8G (for 'local', set XDG_CACHE_HOME)"
        )
    if size > limits.max_cache_bytes:
        raise UsageError(
            f"files of {size / 1e6:.0f} MB in total: the device's cache holds "
            f"{limits.max_cache_bytes / 1e6:.0f} MB. Give fewer models, or start its agent with a "
            "larger --cache-size"
        )


def check_campaign(limits: Limits, block_size: int, references: int, largest: bytes) -> None:
    """Check that the device accepts blocks of a search space.

    Args:
        limits: Limits of the device.
        block_size: Number of models per block.
        references: Number of reference models per block.
        largest: Largest graph of the space, ONNX.

    Raises:
        UsageError: a block can exceed a limit.
    """
    models = block_size + references
    if models > limits.max_block_models:
        raise UsageError(
            f"{argument('block_size')} {block_size} and {argument('references')} {references} "
            "exceed "
            f"the device's {counted(limits.max_block_models, 'model')} per block: give less"
        )
    if excess := excess_of(largest, limits):
        raise UsageError(f"the space's largest model: {excess}: choose a smaller space")
    if models * len(largest) > limits.max_block_bytes:
        raise UsageError(
            f"{argument('block_size')} {block_size} and {argument('references')} {references} "
            "make blocks of up to "
            f"{models * len(largest) / 1e6:.0f} MB; the device accepts "
            f"{limits.max_block_bytes / 1e6:.0f} MB: give less"
        )


def excess_of(data: bytes, limits: Limits) -> str | None:
    """Return the limit that a model exceeds, in words; None if it exceeds none."""
    try:
        return too_large(data, onnx_view_pb2.Model.FromString(data), limits)
    except DecodeError:
        return None  # not ONNX: reported by the device


def _excess(size_bytes: int, outline: onnx_view_pb2.Model | None, limits: Limits) -> str | None:
    """Return the same as :func:`excess_of` for a file that is not in memory."""
    if size_bytes > limits.max_model_bytes:
        return (
            f"the model has {size_bytes / 1e6:.0f} MB, above this device's limit of "
            f"{limits.max_model_bytes / 1e6:.0f} MB"
        )
    return None if outline is None else too_large(b"", outline, limits)
