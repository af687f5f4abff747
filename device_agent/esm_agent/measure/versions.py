"""Comparison of a model's IR and opset versions with those that the runtime supports."""

from __future__ import annotations

import functools
from pathlib import Path

import onnxruntime as ort
from google.protobuf.message import DecodeError

from esm_protos.graphs import mapped
from esm_protos.v1 import onnx_values_pb2 as pb
from esm_protos.v1 import onnx_view_pb2 as view

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_HIGHEST, _OLD_IR, _OLD_OPSET = 99, 3, 7
"""Version above all existing ones; versions that every runtime supports."""


def too_new(path: Path) -> str | None:
    """Return which version of a model is too new for the runtime, and what to do; else None."""
    model = view.Model()
    try:
        with mapped(path) as data:
            model.MergeFromString(data)
    except (OSError, DecodeError):
        return None
    ours = f"onnxruntime {ort.__version__} on this device"
    for opset in model.opset_import:
        if opset.domain in _DOMAINS and opset.version > (newest := _newest_opset(opset.domain)):
            called = f"opset {opset.version}" + (f" of {opset.domain}" if opset.domain else "")
            return (
                f"the model has {called}, {ours} supports opset {newest} at most: export with "
                f"opset {newest} or lower, or update onnxruntime there"
            )
    if model.ir_version > (newest := _newest_ir()):
        return (
            f"the model has IR version {model.ir_version}, {ours} supports IR version {newest} at "
            f"most: save it with ir_version {newest} or lower, or update onnxruntime there"
        )
    return None


@functools.cache
def _newest_ir() -> int:
    return next((v for v in range(_HIGHEST, _OLD_IR, -1) if _takes(v, "", _OLD_OPSET)), _OLD_IR)


@functools.cache
def _newest_opset(domain: str) -> int:
    versions = range(_HIGHEST, 1, -1)
    return next((v for v in versions if _takes(_newest_ir(), domain, v)), 1)


def _takes(ir_version: int, domain: str, opset: int) -> bool:
    """Return whether the runtime loads a model of one Identity with these versions."""
    tensor = pb.Type(tensor_type=pb.TensorType(elem_type=1))
    graph = pb.Graph(
        node=[pb.Node(input=["x"], output=["y"], op_type="Identity")],
        name="nothing",
        input=[pb.ValueInfo(name="x", type=tensor)],
        output=[pb.ValueInfo(name="y", type=tensor)],
    )
    opsets = {"": _OLD_OPSET, domain: opset}
    model = pb.Model(
        ir_version=ir_version,
        graph=graph,
        opset_import=[pb.OperatorSet(domain=d, version=v) for d, v in opsets.items()],
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True
