"""The ONNX project's own test cases of operators and small networks, as files.

Run as a program, ``python -m tests.onnx_cases FOLDER``, it prints the names of those cases that
ONNX Runtime runs by itself, without this project, one a line.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

_KINDS = ("simple", "pytorch-operator", "pytorch-converted")
"""Those that lie in the package as files, each with its inputs."""
_PACKED = (
    *(TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1),
    *(getattr(TensorProto, name) for name in ("INT2", "UINT2") if hasattr(TensorProto, name)),
)
_BITS = (
    *(TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ),
    *(TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ, TensorProto.COMPLEX64),
    *(getattr(TensorProto, name) for name in ("FLOAT8E8M0",) if hasattr(TensorProto, name)),
)
"""Types that the runtime's Python interface takes by address only."""


class CaseFiles(NamedTuple):
    """One test case: its model, and its inputs as the agent takes them (``NAME.pb`` in a zip)."""

    name: str
    model: Path
    inputs: Path


def write(folder: Path, names: Mapping[str, str] | None = None) -> list[CaseFiles]:
    """Write all cases, or those of operators with these names, in alphabetic order.

    Args:
        names: with the modules of ``onnx.backend.test.case.node`` that make them; making all
            takes long.
    """
    cases = []
    newest_ir, newest_opset = _newest()
    for name, model, protos in _all() if names is None else _some(names):
        # Most of the newest operators are the same in the opset before.
        model.ir_version = min(model.ir_version, newest_ir)
        for opset in model.opset_import:
            if not opset.domain:
                opset.version = min(opset.version, newest_opset)
        case = CaseFiles(name, folder / f"{name}.onnx", folder / f"{name}.zip")
        case.model.write_bytes(model.SerializeToString())
        with zipfile.ZipFile(case.inputs, "w") as archive:
            for given, proto in zip(model.graph.input, protos, strict=False):
                archive.writestr(f"{given.name}.pb", proto.SerializeToString())
        cases.append(case)
    return sorted(cases)


def _newest() -> tuple[int, int]:
    """Return the newest version of the format and of the operators that the runtime takes."""

    def taken(ir_version: int, opset: int) -> bool:
        value = helper.make_tensor_value_info
        node = helper.make_node("Identity", ["x"], ["y"])
        ends = ([value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
        model = helper.make_model(
            helper.make_graph([node], "g", *ends),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception:
            return False
        return True

    ir_version, opset = 8, 17
    while taken(ir_version + 1, opset):
        ir_version += 1
    while taken(ir_version, opset + 1):
        opset += 1
    return ir_version, opset


def _some(names: Mapping[str, str]) -> Iterator[tuple[str, ModelProto, list[Any]]]:
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in sorted(set(names.values())):
            importlib.import_module(f"{node.__name__}.{module}")
    yield from (_made(case) for case in node._NodeTestCases if case.name in names)


def _all() -> Iterator[tuple[str, ModelProto, list[Any]]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    yield from map(_made, cases)
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in _KINDS:
        for path in sorted((data / kind).glob("*/model.onnx")):
            model = onnx.load(path)
            protos = []
            for number, given in enumerate(model.graph.input):
                file = path.parent / "test_data_set_0" / f"input_{number}.pb"
                if not file.exists():
                    break
                protos.append(_empty(given))
                protos[-1].ParseFromString(file.read_bytes())
            yield f"{kind}_{path.parent.name}", model, protos


def _made(case: Any) -> tuple[str, ModelProto, list[Any]]:
    inputs = map(_proto, case.model.graph.input, case.data_sets[0][0])
    return case.name, case.model, list(inputs)


def _empty(given: onnx.ValueInfoProto) -> Any:
    if given.type.HasField("sequence_type"):
        return onnx.SequenceProto()
    return onnx.OptionalProto() if given.type.HasField("optional_type") else TensorProto()


def _proto(given: onnx.ValueInfoProto, value: Any) -> Any:
    if isinstance(value, TensorProto):
        return value
    if given.type.HasField("sequence_type"):
        return numpy_helper.from_list(value, given.name)
    if given.type.HasField("optional_type"):
        return numpy_helper.from_optional(value, given.name)
    return numpy_helper.from_array(value, given.name)


def runnable(cases: Sequence[CaseFiles]) -> set[str]:
    """Return the names of the cases that ONNX Runtime runs with their own inputs.

    They run in a process of their own, since some end it.
    """
    names: set[str] = set()
    todo = list(cases)
    while todo:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_run_all, args=(todo, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            while todo:
                if ours.recv():
                    names.add(todo[0].name)
                del todo[0]
        except EOFError:
            del todo[0]  # which ended it
        process.join()
    return names


def _run_all(cases: Sequence[CaseFiles], connection: Any) -> None:
    for case in cases:
        try:
            _run(case)
            connection.send(True)
        except Exception:
            connection.send(False)


def _run(case: CaseFiles) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(case.model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    model = onnx.load(case.model)
    kept = []
    feeds: dict[str, Any] = {}
    with zipfile.ZipFile(case.inputs) as archive:
        for given in model.graph.input:
            if f"{given.name}.pb" not in archive.namelist():
                continue
            proto = _empty(given)
            proto.ParseFromString(archive.read(f"{given.name}.pb"))
            if isinstance(proto, onnx.SequenceProto):
                feeds[given.name] = numpy_helper.to_list(proto)
            elif isinstance(proto, onnx.OptionalProto):
                feeds[given.name] = numpy_helper.to_optional(proto)
            elif proto.data_type in (*_PACKED, *_BITS):
                array = numpy_helper.to_array(proto)
                raw = TensorProto.FromString(
                    numpy_helper.from_array(array).SerializeToString()
                ).raw_data
                buffer = ctypes.create_string_buffer(raw, max(len(raw), 1))
                kept.append(buffer)
                dims = tuple(proto.dims)
                assert math.prod(dims) >= 0
                binding.bind_input(
                    given.name, "cpu", 0, proto.data_type, dims, ctypes.addressof(buffer)
                )
            else:
                feeds[given.name] = numpy_helper.to_array(proto)
    if not kept and all("tensor" in o.type and _plain(o.type) for o in session.get_outputs()):
        session.run(None, feeds)
        return
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)


def _plain(kind: str) -> bool:
    return not any(
        word in kind for word in ("float8", "bfloat16", "int4", "int2", "complex", "float4")
    )


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    cases = write(folder)
    names = runnable(cases)
    print(f"{len(names)} of {len(cases)}", file=sys.stderr)
    print("\n".join(sorted(names)))


if __name__ == "__main__":
    main()
