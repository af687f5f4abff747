"""Execution providers of real wheels, each on an agent in an environment of its own.

Run by ``make test-providers``, which fetches the wheels (:mod:`benchmarks.provider_wheels`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from onnx import TensorProto, helper
from typer.testing import CliRunner

from benchmarks import provider_wheels
from benchmarks.provider_wheels import FOLDER, ROOT, WHEELS, surroundings
from esm_host.cli.app import app
from esm_models.spaces import load_space
from tests.helpers import smallest

pytestmark = pytest.mark.providers

MATRICES = ROOT / "device_agent" / "esm_agent" / "reference_models" / "large.onnx"
CPU, OPENVINO, QNN = (f"{name}ExecutionProvider" for name in ("CPU", "OpenVINO", "QNN"))
PROFILE = ["--space", "resnet", "--resolution", "32", "--width-mult", "0.25", "--bins", "4"]


@contextmanager
def skipping() -> Iterator[None]:
    """Skip the test if a wheel cannot be had."""
    try:
        yield
    except provider_wheels.WheelMissingError as error:
        pytest.skip(str(error))


def environment(name: str) -> Path:
    with skipping():
        return provider_wheels.environment(name)


@contextmanager
def agent(name: str, *options: str) -> Iterator[str]:
    with skipping(), provider_wheels.agent(name, *options) as address:
        yield address


@pytest.fixture(scope="module")
def openvino() -> Iterator[str]:
    with agent("openvino") as address:
        yield address


@pytest.fixture(scope="module")
def qnn() -> Iterator[str]:
    with agent("qnn") as address:
        yield address


@pytest.fixture(scope="module")
def ggml() -> Iterator[str]:
    with agent("ggml") as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weightless ResNet, and a small network whose last node few providers take."""
    folder = tmp_path_factory.mktemp("models")
    space = load_space("resnet", resolution=32, width_mult=0.25)
    (folder / "resnet.onnx").write_bytes(space.build(smallest(space)))
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "x"], ["a"], name="add"),
        helper.make_node("Unique", ["a"], ["y"], name="unique"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (folder / "unique.onnx").write_bytes(model.SerializeToString())
    return folder


def esm_host(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def timed(address: str, model: Path, *words: object) -> dict[str, Any]:
    """The result of a model that is timed with few runs."""
    few = ("--runs", 5, "--quiet", "--json", "-")
    told = esm_host("time", model, "--device", address, *words, *few)
    assert told.stdout, told.output
    (result,) = json.loads(told.stdout)["results"]
    found: dict[str, Any] = result
    return found


def lines(address: str) -> list[str]:
    told = esm_host("devices", "info", address)
    assert told.exit_code == 0, told.output
    return [line.split(maxsplit=1)[1] for line in told.stdout.splitlines() if "provider " in line]


# OpenVINO, in the wheel


def test_openvino_runs_every_node_of_a_weightless_network(openvino: str, folder: Path) -> None:
    assert "openvino 1.24.1: Intel, CPU" in lines(openvino)
    result = timed(openvino, folder / "resnet.onnx", "--ep", "openvino")
    assert (result["status"], result["fallback"]) == ("success", [])
    assert list(result["ran_on"]) == [OPENVINO]
    assert not result["own_threads"]
    on_cpu = timed(openvino, folder / "resnet.onnx")
    assert on_cpu["ran_on"] == {CPU: result["ran_on"][OPENVINO]}


def test_openvino_refuses_what_it_leaves_to_the_processor(openvino: str, folder: Path) -> None:
    result = timed(openvino, folder / "unique.onnx", "--ep", "openvino")
    assert result["failure"]["kind"] == "unsupported_op"
    assert "1 of 3 nodes did not run on OpenVINO: unique (Unique)" in result["failure"]["message"]
    allowed = timed(openvino, folder / "unique.onnx", "--ep", "openvino", "--allow-fallback")
    assert allowed["ran_on"] == {OPENVINO: 2, CPU: 1}
    assert allowed["fallback"] == ["unique"]


def test_openvino_and_the_processor_are_cases_of_one_timing(openvino: str, folder: Path) -> None:
    models = folder / "resnet.onnx", folder / "unique.onnx"
    told = esm_host(
        *("time", *models, "--device", openvino, "--ep", "cpu,openvino", "--runs", 20),
        *("--ep-option", "openvino:device_type=CPU", "--opt-level", "extended", "--json", "-"),
    )
    assert told.exit_code == 1, "a model is refused on one"
    results = json.loads(told.stdout)["results"]
    assert [(r["provider"], r["provider_options"], r["status"]) for r in results] == [
        ("cpu", {}, "success"),
        ("openvino", {"device_type": "CPU"}, "success"),
        ("cpu", {}, "success"),
        ("openvino", {"device_type": "CPU"}, "failed"),
    ]
    assert [list(r["ran_on"]) for r in results] == [[CPU], [OPENVINO], [CPU], []]
    assert results[3]["failure"]["kind"] == "unsupported_op"


@pytest.mark.parametrize(
    "option",
    [
        *("no_such_option=1", "device_type=NO_SUCH", "device_type=NPU", "load_config=no.json"),
        *("cache_dir=/tmp/x", "cache_dir=blobs", 'load_config={"CPU": {"CACHE_DIR": "blobs"}}'),
    ],
)
def test_a_wrong_option_is_a_typed_refusal(openvino: str, folder: Path, option: str) -> None:
    options = ("--ep", "openvino", "--ep-option", option)
    result = timed(openvino, folder / "resnet.onnx", *options)
    assert (result["status"], result["trimmed_mean_ms"]) == ("failed", None)
    assert result["failure"]["kind"] == "invalid_input"
    assert option in result["failure"]["message"]
    assert "see the agent's log" not in result["failure"]["message"]
    again = timed(openvino, folder / "resnet.onnx", "--ep", "openvino")
    assert again["status"] == "success"


def test_openvino_takes_its_threads_from_the_number_asked_for(openvino: str, folder: Path) -> None:
    told = esm_host(
        *("time", folder / "resnet.onnx", "--device", openvino, "--ep", "openvino"),
        *("--ep-option", "num_of_threads=2"),
    )
    assert told.exit_code == 2
    assert "num_of_threads=2: the number of threads sets it" in told.stderr


BUSY_THREADS = """
import pathlib, sys
from esm_agent.measure.block import UploadedModel
from esm_agent.providers import find_providers
from esm_protos.messages import MeasureSpec

def ticks():
    lines = [task.read_text() for task in pathlib.Path("/proc/self/task").glob("*/stat")]
    spent = {line.split()[0]: line.rpartition(")")[2].split()[11:13] for line in lines}
    return {thread: sum(map(int, both)) for thread, both in spent.items()}

name, path, threads = sys.argv[1:]
(provider,) = [each.make() for each in find_providers() if each.info.name == name]
model = provider.load(UploadedModel("m", pathlib.Path(path)), MeasureSpec(threads=int(threads)))
before = ticks()
while sum(ticks().values()) - sum(before.values()) < 200:
    model.run()
spent = {thread: now - before.get(thread, 0) for thread, now in ticks().items()}
print(sum(each > 0.05 * sum(spent.values()) for each in spent.values()))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wheel", ["openvino", "ep-openvino", "ggml"])
def test_a_provider_runs_on_no_more_threads_than_asked_for(
    tmp_path: Path, wheel: str, threads: int
) -> None:
    """By the processor time of each thread; beside other programs it may be fewer."""
    name = wheel.removeprefix("ep-")
    path = MATRICES
    if name == "openvino":
        space = load_space("resnet", resolution=128)
        path = tmp_path / "model.onnx"
        path.write_bytes(space.build(smallest(space)))
    command = [environment(wheel), "-c", BUSY_THREADS, name, path, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings())
    if "offers no device" in done.stderr:
        pytest.skip("the plug-in has no device on this machine")
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= threads, done.stderr


OUTPUTS = """
import pathlib, sys
import numpy as np
from esm_agent.measure.block import UploadedModel
from esm_agent.providers import find_providers, make_provider
from esm_protos.messages import MeasureSpec

(own,) = [each.make() for each in find_providers() if each.info.name == "openvino"]
model = UploadedModel("m", pathlib.Path(sys.argv[1]))
options = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}
outputs = []
for provider, given in ((make_provider(), {}), (own, options)):
    loaded = provider.load(model, MeasureSpec(provider=provider.name, provider_options=given))
    loaded.run()
    outputs.append(loaded.outputs()[0].numpy())
np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-5 * abs(outputs[0]).max())
print("equal")
"""


@pytest.mark.parametrize("wheel", ["openvino", "ep-openvino"])
def test_openvino_gives_the_outputs_of_the_processor_in_float32(folder: Path, wheel: str) -> None:
    command = [environment(wheel), "-c", OUTPUTS, folder / "resnet.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings())
    if "offers no device" in done.stderr:
        pytest.skip("the plug-in has no device on this machine")
    assert done.stdout == "equal\n", done.stderr


COMPILED = """
import pathlib, sys
from esm_agent.measure.block import UploadedModel
from esm_agent.providers import find_providers
from esm_protos.messages import MeasureSpec

(own,) = [each.make() for each in find_providers() if each.info.name == sys.argv[1]]
for _ in range(2):
    loaded = own.load(
        UploadedModel("m", pathlib.Path(sys.argv[2])), MeasureSpec(provider=own.name)
    )
    loaded.run()
    output = loaded.outputs()[0].numpy().ravel()[:4].tolist()
    print("found", loaded.compiled or "neither", dict(loaded.ran_on), output)
"""


@pytest.mark.parametrize(
    ("wheel", "first", "second"),
    [
        ("openvino", ["fresh", "neither"], ["neither", "neither"]),  # it cannot read what it writes
        ("ep-openvino", ["fresh", "cached"], ["cached", "cached"]),
        ("qnn", ["fresh", "cached"], ["cached", "cached"]),
        ("ggml", ["neither", "neither"], ["neither", "neither"]),
    ],
)
def test_a_compiled_model_is_the_same_one(
    folder: Path, tmp_path: Path, wheel: str, first: list[str], second: list[str]
) -> None:
    model = MATRICES if wheel == "ggml" else folder / "resnet.onnx"
    command = [environment(wheel), "-c", COMPILED, wheel.removeprefix("ep-"), model]
    env = {**surroundings(), "ESM_AGENT_COMPILED_CACHE": str(tmp_path)}
    told = set()
    for expected in (first, second):
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if "offers no device" in done.stderr:
            pytest.skip("the plug-in has no device on this machine")
        found = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if "found" in line]
        assert [how for how, _ in found] == expected, done.stderr
        told |= {what for _, what in found}
    assert len(told) == 1, "the same nodes and outputs"


WEIGHTS = """
import pathlib, sys
import numpy as np
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.weightless import with_weights
from esm_agent.providers import find_providers
from esm_protos.messages import MeasureSpec

(own,) = [each.make() for each in find_providers() if each.info.name == sys.argv[1]]
model, spec = UploadedModel("m", pathlib.Path(sys.argv[2])), MeasureSpec(provider=own.name)
with with_weights(model, spec.seed) as whole:
    outputs = []
    for each in (model, whole):
        loaded = own.load(each, spec)
        loaded.run()
        outputs.append(loaded.outputs()[0].numpy())
np.testing.assert_array_equal(*outputs)
print("not needed" if not own._needs_weights else "needed")
"""


@pytest.mark.parametrize("wheel", WHEELS)
def test_weights_apart_from_the_model_are_those_inside_it(folder: Path, wheel: str) -> None:
    """None of these needs a copy of the model with its weights; both give the same outputs."""
    model = MATRICES if wheel == "ggml" else folder / "resnet.onnx"
    command = [environment(wheel), "-c", WEIGHTS, wheel.removeprefix("ep-"), model]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings())
    if "offers no device" in done.stderr:
        pytest.skip("the plug-in has no device on this machine")
    assert done.stdout.endswith("not needed\n"), done.stderr


def test_a_profile_tells_of_compiled_partitions(openvino: str, folder: Path) -> None:
    result = timed(openvino, folder / "resnet.onnx", "--ep", "openvino", "--profile")
    assert {node["provider"] for node in result["profile"]["nodes"]} == {OPENVINO}


def test_a_campaign_runs_on_openvino(openvino: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = esm_host(
        *("profile", "--device", openvino, "--ep", "openvino", *PROFILE, "--run", run),
        *("--initial", 40, "--max-models", 40, "--runs", 5, "--target-accuracy", 1),
    )
    assert told.exit_code in (0, 3), told.output
    from esm_host.dataset.store import Store

    store = Store(run / "store.sqlite")
    placed = {name for each in store.measurements() for name, _ in each.ran_on}
    store.close()
    assert placed == {OPENVINO}


# QNN, a plug-in with an emulated accelerator


def test_qnn_without_its_backend_gives_no_number(qnn: str, folder: Path) -> None:
    options = ("--ep", "qnn", "--ep-option", "backend_type=cpu")
    result = timed(qnn, folder / "resnet.onnx", *options)
    assert (result["status"], result["trimmed_mean_ms"]) == ("failed", None)
    assert re.match(r"(\d+) of \1 nodes did not run on QNN: ", result["failure"]["message"])


def test_qnn_runs_every_node_on_its_emulated_accelerator(qnn: str, folder: Path) -> None:
    (line,) = [line for line in lines(qnn) if line.startswith("qnn ")]
    assert line == "qnn 2.7.0: Qualcomm, CPU"
    result = timed(qnn, folder / "resnet.onnx", "--ep", "qnn")
    assert result["status"] == "success", result["failure"]
    assert list(result["ran_on"]) == [QNN]
    assert result["own_threads"]


def test_a_library_is_given_by_its_path(folder: Path) -> None:
    (path,) = FOLDER.glob("qnn/lib/python*/site-packages/onnxruntime_qnn/libonnxruntime_*.so")
    with agent("qnn", "--ep-library", f"qnn={path}") as address:
        told = lines(address)
        assert "qnn 0.1.0: Qualcomm, CPU" in told
        assert "qnn 2.7.0: there is already a provider 'qnn': choose another name" in told
        result = timed(address, folder / "resnet.onnx", "--ep", "qnn")
        assert list(result["ran_on"]) == ["qnn"], "it takes the name that it is registered by"


# ggml, a plug-in that takes few operators


def test_ggml_runs_matrices_and_nothing_else_under_its_name(ggml: str, folder: Path) -> None:
    assert any(line.startswith("ggml 0.2.0: ") for line in lines(ggml))
    result = timed(ggml, MATRICES, "--ep", "ggml")
    assert not result["own_threads"]
    assert result["status"] == "success", result["failure"]
    assert list(result["ran_on"]) == ["ggml"]
    for model in ("unique.onnx", "resnet.onnx"):
        result = timed(ggml, folder / model, "--ep", "ggml")
        assert (result["status"], result["trimmed_mean_ms"]) == ("failed", None)


# OpenVINO as a plug-in, which takes processors of Intel alone


def test_a_plugin_offers_a_device_or_says_that_it_has_none(folder: Path) -> None:
    with agent("ep-openvino") as address:
        (line,) = [line for line in lines(address) if line.startswith("openvino ")]
        if line != "openvino 1.8.1: registered, offers no device on this machine":
            assert line == "openvino 1.8.1: Intel, CPU"
            config = 'load_config={"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'
            options = ("--ep", "openvino", "--ep-option", config)
            result = timed(address, folder / "resnet.onnx", *options)
            assert result["status"] == "success", result["failure"]
            assert list(result["ran_on"]) == [OPENVINO]
