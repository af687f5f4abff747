"""Hosts in surroundings that lack something: they work, or say in one line what to do."""

import errno
import fcntl
import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esm_host.campaign.folder import RunFolder
from esm_host.cli.app import app
from esm_host.errors import DatasetError
from esm_host.transport.devices import configured, groups
from tests.environments import all_without, as_nobody, needs_nameless, without
from tests.helpers import ARITHMETIC

BOM = b"\xef\xbb\xbf"


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@needs_nameless
def test_times_for_a_user_without_a_home_folder() -> None:
    done = as_nobody("esm_host.cli", "time", ARITHMETIC, "--device", "local", "--runs", 3)
    assert "Traceback" not in done.stderr
    assert "arithmetic" in done.stdout


@needs_nameless
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("time", ARITHMETIC, "--device", "pi4"), "no home folder: set HOME or XDG_CONFIG_HOME"),
        pytest.param(
            ("sources", "list"),
            "no home folder: set HOME or XDG_DATA_HOME",
            marks=pytest.mark.faults,
        ),
        (("devices", "list"), "no devices yet"),
    ],
)
def test_says_where_a_home_folder_is_missing(arguments: tuple[object, ...], words: str) -> None:
    done = as_nobody("esm_host.cli", *arguments)
    (line,) = done.stderr.splitlines()
    assert words in line


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("ESM_CONFIG", str(path))
    return path


def test_a_byte_order_mark_before_the_devices_is_no_device(config: Path) -> None:
    """As editors of Windows write it; German umlauts of comments stay."""
    text = '# Küche\r\n[devices.pi4]\r\naddress = "127.0.0.1:1"\r\n[groups]\r\nall = ["pi4"]\r\n'
    config.write_bytes(BOM + text.encode())
    assert set(configured()) == {"pi4"}
    assert groups() == {"all": ("pi4",)}
    assert esm_host("devices", "rename", "pi4", "kitchen").exit_code == 0
    assert esm_host("devices", "group", "two", "kitchen").exit_code == 0
    kept = config.read_bytes()
    assert kept.count(BOM) == 0
    assert "# Küche".encode() in kept
    assert tomllib.loads(kept.decode())["groups"] == {"all": ["kitchen"], "two": ["kitchen"]}
    config.write_bytes(BOM + kept)
    assert esm_host("devices", "remove", "kitchen", "--force").exit_code == 0
    assert configured() == {}


def test_a_file_in_another_encoding_is_one_line(config: Path) -> None:
    config.write_bytes("[devices.pi4]\n".encode("utf-16"))
    result = esm_host("devices", "list")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: ESM_CONFIG: {config} cannot be read")


def test_a_campaign_wants_a_file_system_with_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(DatasetError, match=r"without locks, .*: choose a folder on a local disk"),
        RunFolder(tmp_path).locked(),
    ):
        pass


# Less than all is installed

SMALL_LACKS = (
    *("altair", "cloudpickle", "jinja2", "joblib", "networkx", "onnx", "pandas", "pyarrow"),
    *("pymoo", "sklearn", "scipy", "sqlalchemy", "threadpoolctl", "torch", "vl_convert"),
)


def test_the_small_install_times_compares_and_knows_devices(tmp_path: Path) -> None:
    def esm_host(*arguments: object) -> str:
        config = {"ESM_CONFIG": str(tmp_path / "devices.toml")}
        done = without(SMALL_LACKS, "esm_host.cli", *arguments, **config)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "devices.toml").write_text('[devices.pi4]\naddress = "127.0.0.1:1"\n')
    assert "pi4" in esm_host("devices", "list")
    esm_host("devices", "remove", "pi4")  # the file is written
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    for path in (before, after):
        esm_host("time", ARITHMETIC, "--runs", 30, "--json", path)
    assert "arithmetic" in esm_host("compare", before, after)
    done = without(SMALL_LACKS, "esm_host.cli", "predict", tmp_path, "--sample", 1)
    assert done.returncode == 1
    assert "pip install '.[workstation]' in a clone" in done.stderr.splitlines()[-1]


def test_a_report_of_nothing_says_so_before_it_asks_for_packages() -> None:
    done = without(["pandas", "altair", "jinja2"], "esm_host.cli", "report", "nope.json")
    assert done.returncode == 2
    assert "there is no nope.json" in done.stderr


def test_without_torch_all_but_networks_works(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = "--resolution 32 --width-mult 0.25 --initial 10 --max-models 10 --bins 1 --runs 3"
    small += " --sampling balanced --verify 0"
    done = all_without(
        ["torch"],
        [
            ["profile", "--run", run, *small.split(), "--target-accuracy", 1],
            ["predict", run, "--sample", 2, "--interval", 90],
            ["report", run, "-o", tmp_path / "report.html"],
            ["search", run, "-o", tmp_path / "search", "--measure", 0],
            ["profile", "--run", run, "--resume", "--predictor", "mlp"],
        ],
    )
    assert (tmp_path / "search" / "front.json").exists(), done.stderr
    assert done.returncode == 2
    assert "'mlp' needs torch: pip install '.[host]'" in done.stderr.splitlines()[-1]
