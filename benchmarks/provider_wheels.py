"""Environments with wheels of execution providers, and agents in them.

``ESM_PROVIDER_VENVS`` names the folder of the environments, which are made once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("ESM_PROVIDER_VENVS", ROOT / "build" / "providers"))
WHEELS = {
    "openvino": "onnxruntime-openvino==1.24.1",
    "qnn": "onnxruntime-qnn==2.7.0",
    "ggml": "onnxruntime-ggml==0.2.0",
    "ep-openvino": "onnxruntime-ep-openvino==1.8.1",
}
OPENVINO_FLOAT32 = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}
"""Options by which OpenVINO computes in float32, as the CPU provider does."""


class WheelMissingError(Exception):
    """A wheel cannot be installed."""


def environment(name: str) -> Path:
    """Return the interpreter of an environment with a wheel; all else is the caller's.

    Raises:
        WheelMissingError: the wheel cannot be installed.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", WHEELS[name]]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1]
            raise WheelMissingError(f"{WHEELS[name]} cannot be installed: {why}")
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "of_the_caller.pth").write_text(sysconfig.get_path("purelib"))  # after its own
        (folder / "installed").touch()
    return python


def surroundings() -> dict[str, str]:
    """Return the variables of a process in an environment."""
    path = ":".join(str(ROOT / name) for name in ("device_agent", "protos"))
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def agent(name: str, *options: str) -> Iterator[str]:
    """Yield the address of an agent in an environment, which is alive at the end."""
    command = [environment(name), "-m", "esm_agent.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        [*command, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=surroundings(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith("esm-agent "), "libraries write to its standard output"
        yield first.split()[-1]
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.wait(timeout=60)
