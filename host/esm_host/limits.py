"""What a device can do and takes, checked before anything is sent to it; it checks again."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from esm_host.errors import UsageError
from esm_protos.graphs import bodies, external_location, tensors, too_large
from esm_protos.messages import DeviceInfo, Limits, MeasureSpec, Model
from esm_protos.v1 import onnx_view_pb2
from esm_protos.weights import WEIGHTLESS_LOCATION


def check_spec(device: DeviceInfo, spec: MeasureSpec) -> None:
    """Raises UsageError unless the device can measure like that."""
    if spec.provider not in device.providers:
        raise UsageError(f"--ep {spec.provider}: the device has {', '.join(device.providers)}")
    longest = device.limits.max_block_s
    if max(spec.max_block_s, spec.min_block_s) > longest:
        raise UsageError(
            f"--max-time {spec.max_block_s:g}: the device breaks blocks off after {longest:g} s, "
            "give less, or its agent a longer --max-block-time"
        )


def check_models(limits: Limits, models: Sequence[Model]) -> None:
    """Raises UsageError unless the device takes these models as one block."""
    if len(models) > limits.max_block_models:
        raise UsageError(
            f"{len(models)} models: the device takes {limits.max_block_models} at a time, "
            "give fewer"
        )
    for model in models:
        data = model.data if isinstance(model.data, bytes) else model.data.read_bytes()
        if excess := excess_of(data, limits):
            raise UsageError(f"{model.model_id}: {excess}: give a smaller one")
    size = sum(model.size_bytes for model in models)
    if size > limits.max_block_bytes:
        raise UsageError(
            f"models of {size / 1e6:.0f} MB together: the device takes "
            f"{limits.max_block_bytes / 1e6:.0f} MB at a time, give fewer or smaller ones"
        )


def check_campaign(limits: Limits, block_size: int, references: int, largest: bytes) -> None:
    """Raises UsageError unless the device takes blocks of a search space.

    Args:
        largest: the space's largest graph.
    """
    models = block_size + references
    if models > limits.max_block_models:
        raise UsageError(
            f"--block-size {block_size} and --references {references} exceed "
            f"the device's {limits.max_block_models} models per block: give less"
        )
    if excess := excess_of(largest, limits):
        raise UsageError(f"the space's largest model: {excess}: choose a smaller space")
    if models * len(largest) > limits.max_block_bytes:
        raise UsageError(
            f"--block-size {block_size} and --references {references} make blocks of up to "
            f"{models * len(largest) / 1e6:.0f} MB; the device takes "
            f"{limits.max_block_bytes / 1e6:.0f} MB: give less"
        )


def excess_of(data: bytes, limits: Limits) -> str | None:
    """What of a model the device does not take, and its limit; None if it takes it."""
    try:
        return too_large(data, onnx_view_pb2.Model.FromString(data), limits)
    except DecodeError:
        return None  # no ONNX file: the device says so


def external_file(data: bytes) -> str | None:
    """The first file, besides the model's own, that holds data of it."""
    try:
        model = onnx_view_pb2.Model.FromString(data)
    except DecodeError:
        return None
    for body in bodies(model):
        for tensor in tensors(body):
            location = external_location(tensor)
            if location is not None and location != WEIGHTLESS_LOCATION:
                return location or "unnamed"
    return None
