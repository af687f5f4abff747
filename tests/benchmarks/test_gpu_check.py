"""The checks for a GPU, on a runtime that takes the processor for one: that they can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from esm_agent.device.telemetry import Telemetry
from tests.agent import fake_cuda
from tests.agent.fake_cuda import FakeRuntime


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> gpu_check.Box:
    for name, value in {
        "DEPTHS": (1, 2),
        "LAYER": (1, 8, 8),
        "RESOLUTION": 32,
        "WIDTH": 0.25,
        "SECONDS": 0.001,
        "PASSES": 2,
        "RUNS": 3,
        "SPACES": ("resnet",),
        "CUDA": fake_cuda.on_gpu,
        "Telemetry": fake_cuda.SteadyGpu,
    }.items():
        monkeypatch.setattr(gpu_check, name, value)
    runtime = FakeRuntime()
    backend = fake_cuda.proved(0, runtime)
    runtime.cpu_ops = ["Det"]
    return gpu_check.Box(0, backend, tmp_path)


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (gpu_check.NO_GPU, "")
    assert line.startswith("no GPU to check: ")


@pytest.mark.parametrize("check", ["nodes_on_cuda", "same_results_as_cpu", "refuses_fallback"])
def test_what_does_not_depend_on_a_gpu_is_ok(box: gpu_check.Box, check: str) -> None:
    row = gpu_check.attempt(getattr(gpu_check, check), box)
    assert (row["outcome"], row["text"]) == ("ok", "")
    assert row["figures"]


@pytest.mark.benchmarks
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(
    "check",
    ["synchronised", "agrees_with_plain_runs", "cuda_graph", "convolution_search", "repeats"],
)
def test_timings_give_figures_whatever_they_say(box: gpu_check.Box, check: str) -> None:
    row = gpu_check.attempt(getattr(gpu_check, check), box)
    assert row["outcome"] in ("ok", "failed")
    assert row["figures"], row["text"]
    gpu_check.show(row)


@pytest.mark.benchmarks
def test_a_processor_has_no_tf32(box: gpu_check.Box, monkeypatch: pytest.MonkeyPatch) -> None:
    row = gpu_check.attempt(gpu_check.tf32, box)
    assert (row["outcome"], row["text"]) == ("failed", "on, nothing changes")
    monkeypatch.setattr(gpu_check, "compute_capability", lambda gpu: 7)
    assert gpu_check.attempt(gpu_check.tf32, box)["outcome"] == "skipped"


def test_a_model_that_falls_back_fails_the_check(box: gpu_check.Box) -> None:
    box.backend.runtime.cpu_ops = ["Gemm"]
    row = gpu_check.attempt(gpu_check.nodes_on_cuda, box)
    assert row["outcome"] == "failed"
    assert "resnet smallest" in row["text"]
    box.backend.runtime.cpu_ops = []
    row = gpu_check.attempt(gpu_check.refuses_fallback, box)
    assert (row["outcome"], row["text"]) == ("failed", "not refused")


def test_without_nvml_its_checks_are_skipped(
    box: gpu_check.Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "Telemetry", Telemetry)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for check in (gpu_check.nvml_tells, gpu_check.every_gpu_by_number):
        assert gpu_check.attempt(check, box)["outcome"] == "skipped"
