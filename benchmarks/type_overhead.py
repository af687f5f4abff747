"""Cost of one inference of an empty model, by the type of its input and output.

    python -m benchmarks.type_overhead [--rounds 200]

One model per type, of one node on one element, loaded and run as the agent does. All take turns:
a round runs each of them in random order, some uncounted runs and then 50 in one timing. What a
type costs more than float32 is the median over rounds of the difference within a round, so that
the machine's ups and downs cancel. Prints microseconds per inference.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from onnx import TensorProto, TypeProto, helper

from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import MeasureSpec
from esm_protos.value_types import ELEMENTS

RUNS = 50
UNCOUNTED = 5
BASE = "float32"
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64
_OPSETS = {17: 8, 21: 10, 23: 11, 25: 12}
"""Opset versions with their file format versions; the first that supports a type is used."""


class Case(NamedTuple):
    """Type, and an operator that takes or returns it."""

    type: str
    operator: str
    input: TypeProto
    output: TypeProto
    attributes: dict[str, int] = {}  # noqa: RUF012


def cases() -> list[Case]:
    """Return a case for every type, with Identity or, where it lacks the type, another operator."""
    tensors = {e.name: helper.make_tensor_type_proto(e.number, [1]) for e in ELEMENTS}
    numbers = {element.name: element.number for element in ELEMENTS}
    found = [Case(name, "Identity", kind, kind) for name, kind in tensors.items()]
    vector, shape = tensors["float32"], tensors["int64"]
    for name in ("uint4", "int4", "float4e2m1", "uint2", "int2", "float8e8m0"):
        found.append(Case(name, "Shape", tensors[name], shape))
        found.append(Case(name, "Cast", vector, tensors[name], {"to": numbers[name]}))
    for element in ("float32", "int64", "string"):
        sequence = helper.make_sequence_type_proto(tensors[element])
        found.append(Case(f"seq({element})", "Identity", sequence, sequence))
    sequence = helper.make_sequence_type_proto(vector)
    for name, inner in (("float32", vector), ("seq(float32)", sequence)):
        optional = helper.make_optional_type_proto(inner)
        found.append(Case(f"optional({name})", "Identity", optional, optional))
    return found


def load(case: Case, folder: Path) -> Callable[[], object] | str:
    """Return the model as the agent runs it, or the runtime's reason to refuse it."""
    node = helper.make_node(case.operator, ["x"], ["y"], **case.attributes)
    values = helper.make_value_info("x", case.input), helper.make_value_info("y", case.output)
    graph = helper.make_graph([node], "empty", values[:1], values[1:])
    error: ModelError | None = None
    for opset, ir_version in _OPSETS.items():
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            run = CpuProvider().load(UploadedModel("m", path), MeasureSpec()).run
        except ModelError as refusal:
            error = refusal
        else:
            run()
            return run
    return str(error)


def measure(runs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return microseconds per inference, by model and round."""
    taken: list[list[float]] = [[0.0] * rounds for _ in runs]
    order = list(range(len(runs)))
    for number in range(rounds):
        random.shuffle(order)
        for index in order:
            run = runs[index]
            for _ in range(UNCOUNTED):
                run()
            start = time.perf_counter_ns()
            for _ in range(RUNS):
                run()
            taken[index][number] = (time.perf_counter_ns() - start) / RUNS / 1000
    return taken


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args(arguments).rounds
    random.seed(0)
    found, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            run = load(case, Path(folder))
            if isinstance(run, str):
                missing.append(case)
            else:
                found.append((case, run))
    taken = measure([run for _, run in found], rounds)
    base = taken[[case.type for case, _ in found].index(BASE)]
    print(f"{'type':<24}{'operator':<10}{'median':>8}{'least':>8}{f'over {BASE}':>15}")
    over = []
    for (case, _), own in zip(found, taken, strict=True):
        over.append(median(a - b for a, b in zip(own, base, strict=True)))
        print(
            f"{case.type:<24}{case.operator:<10}{median(own):8.2f}{min(own):8.2f}{over[-1]:+15.2f}"
        )
    print(f"largest difference between two types: {max(over) - min(over):.2f} us")
    names = ", ".join(f"{case.type} ({case.operator})" for case in missing)
    print(f"not in this runtime: {names or 'none'}")


if __name__ == "__main__":
    main()
