"""The import rules of pyproject.toml: the packages keep them, and rogue modules break them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "host": "esm_host",
    "device_agent": "esm_agent",
    "protos": "esm_protos",
    "models_export": "esm_models",
}
# Module that breaks a rule, its only line, and the rule's name.
ROGUES = {
    "esm_host.rogue": ("", "Data flows one way through the host"),
    "esm_host.report.rogue": ("import torch", "Torch is confined to networks and their export"),
    "esm_host.dataset.rogue": ("import grpc", "gRPC is confined to the transport"),
    "esm_host.search.rogue": ("import sqlalchemy", "SQL is confined to the data set"),
    "esm_host.campaign.rogue": (
        "import esm_host.research.hard_sets",
        "The main path imports nothing of the papers' methods",
    ),
    "esm_host.sampling.rogue": ("import esm_host.campaign", "Data flows one way through the host"),
    "esm_agent.device.rogue": ("import onnxruntime", "ONNX Runtime is confined to measuring"),
    "esm_agent.rogue": ("import esm_host.errors", "Host and agent share the contract"),
    "esm_protos.rogue": ("import esm_host.errors", "Host and agent share the contract"),
    "esm_protos.v1.rogue": ("import torch", "Contract, spaces and agent stay light"),
    "esm_host.transport.rogue": (
        "import esm_agent.errors",
        "The host imports nothing of the agent",
    ),
    "esm_host.team_rogue": ("import esm_protos.convert", "Messages are converted in the transport"),
    "esm_models.rogue": ("import grpc", "Search spaces import only onnx and numpy"),
}


def lint_imports(folder: Path) -> tuple[int, dict[str, str]]:
    """Return the exit status, and what is said of every broken rule by its name."""
    path = ":".join(str(folder / name) for name in FOLDERS)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    _, _, broken = result.stdout.partition("Broken contracts")
    parts = re.split(r"^(.+)\n-{5,}$", broken, flags=re.M)
    return result.returncode, dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages without their data, and the rules."""
    for folder, package in FOLDERS.items():
        source = ROOT / folder / package
        for file in source.rglob("*.py"):
            place = tmp_path / folder / package / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_what_is_there_keeps_the_rules_and_rogues_break_them(copy: Path) -> None:
    status, broken = lint_imports(copy)
    assert (status, broken) == (0, {})
    folders = {package: folder for folder, package in FOLDERS.items()}
    for module, (line, _) in ROGUES.items():
        place = copy / folders[module.partition(".")[0]] / f"{module.replace('.', '/')}.py"
        place.write_text(f"{line}\n")
    status, broken = lint_imports(copy)
    assert status == 1
    for module, (_, rule) in ROGUES.items():
        said = "".join(text for name, text in broken.items() if name.startswith(rule))
        assert re.search(rf"\b{re.escape(module)}\b", said), f"{module} is not named by: {rule}"
