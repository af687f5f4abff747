"""``esm-host devices`` as users meet it: the doctor, facts, other names and groups."""

import json
import stat
import time
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from esm_agent.serving import servicer
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app
from esm_host.cli.facts import lines
from esm_host.errors import UsageError
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import (
    DeviceState,
    Diagnosis,
    EnergySensor,
    Finding,
    GpuState,
    Severity,
)
from esm_protos.providers import ProviderInfo

SWAPPING = Finding("swap", Severity.UNFIT, "900 pages a second", "stop other programs")


CONFIG = """# mine
[devices.pi4]  # first
address = "127.0.0.1:1"

# the kitchen one,
# with a fan
[devices.kitchen]
# cable 7
address = "127.0.0.1:2" # asleep
pinned = "devices.kitchen.pem"
token = "esm_abcdefgh"

# what is in the rack
[devices.rack]
address = "127.0.0.1:3"

# together
[groups]
all = ["pi4", "kitchen", "rack"] # everything
cold = ["kitchen"]
"""


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["devices", *map(str, arguments)])


def doctor(*arguments: object) -> Result:
    return command("doctor", *arguments)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(CONFIG)
    (tmp_path / "devices.kitchen.pem").write_text("certificate")
    monkeypatch.setenv("ESM_CONFIG", str(path))
    return path


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def comments(path: Path) -> list[str]:
    return [line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line]


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProfiler(lambda model: 1.0, diagnosis=Diagnosis((SWAPPING,)))
    monkeypatch.setattr(devices, "connect", lambda device: fake)


@pytest.mark.usefixtures("sick")
def test_a_device_that_is_not_fit_is_exit_code_3() -> None:
    result = doctor("pi4")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "unfit    swap  900 pages a second",
        "               -> stop other programs",
        "not fit to measure because of swap (0 ok, 0 unknown, 0 advice, 1 unfit)",
    ]


@pytest.mark.usefixtures("sick")
def test_json_goes_to_stdout_or_to_a_file(tmp_path: Path) -> None:
    shown = json.loads(doctor("pi4", "--json", "-").stdout)
    assert (shown["schema_version"], shown["device"], shown["fit"]) == (1, "pi4", False)
    out = tmp_path / "diagnosis.json"
    result = doctor("pi4", "--json", out)
    assert (result.exit_code, result.stdout) == (3, "")
    assert json.loads(out.read_text()) == shown


def test_a_fit_device_is_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(lambda model: 1.0))
    result = doctor("pi4")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("fit to measure")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["127.0.0.1:1"], 69, "no agent answers"),
        (["nobody"], 2, "unknown device 'nobody'"),
        (["local", "--seconds", "0"], 2, "--seconds"),
        (["local", "--json", "no/such/folder/d.json"], 2, "no folder no/such/folder"),
        ([], 2, "NAME"),
    ],
)
def test_wrong_input_has_its_exit_code(arguments: list[str], code: int, words: str) -> None:
    result = doctor(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr


# Facts


def test_info_tells_what_a_device_is_and_who_has_it(config: Path) -> None:
    server = AgentServer("127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{server.port}"
        config.write_text(f'[devices.here]\naddress = "{address}"\n')
        with devices.connect("here") as profiler:
            info = profiler.device_info()
            profiler.reserve("time \x1b[2J")
            told = command("info", "here")
            data = json.loads(command("info", "here", "--json", "-").stdout)
    finally:
        server.stop()
    assert told.exit_code == 0, told.output
    facts = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert facts["device"] == f"here ({address}): {info.hostname}"
    assert info.cpu_model in facts["hardware"]
    assert facts["runtime"] == f"{info.runtime}, providers cpu"
    assert "256 models" in facts["limits"]
    assert "(time ?[2J)" in told.stdout, "others do not move this terminal's cursor"
    assert {"cache", "isolation", "load", "memory"} <= facts.keys()
    assert (data["schema_version"], data["device"], data["runtime"]) == (1, "here", info.runtime)
    assert data["occupancy"]["holder"]["purpose"] == "time ?[2J"
    assert data["limits"]["max_block_models"] == 256


@pytest.mark.parametrize(
    ("sensors", "told"),
    [
        ([], []),
        (
            [
                EnergySensor("RAPL", "package", problem="not found"),
                EnergySensor("NVML", "gpu", problem="not found"),
            ],
            ["no sensor found (looked for RAPL, NVML)"],
        ),
        (
            [
                EnergySensor("INA226", "board", 1e-4, 0.1),
                EnergySensor("RAPL", "package", problem="only root may read it", fix="sudo x"),
                EnergySensor("NVML", "gpu", problem="not found"),
            ],
            [
                "INA226: covers the board, steps of 0.0001 J, a value every 0.1 s",
                "RAPL: only root may read it: sudo x",
            ],
        ),
    ],
)
def test_info_lists_energy_sensors(sensors: list[EnergySensor], told: list[str]) -> None:
    info = FakeProfiler(lambda model: 1.0, energy_sensors=sensors).device_info()
    found = [line.split(maxsplit=1) for line in lines("pi4", info, info, 0.5)]
    assert [text for heading, text in found if heading == "energy"] == told


def test_info_lists_providers_that_work_and_that_do_not() -> None:
    fake = FakeProfiler(lambda model: 1.0)
    fake.providers = (
        ProviderInfo("cpu", version="1.24.1", vendor="Microsoft", kind="CPU"),
        ProviderInfo("qnn", version="2.7.0", open_options=True),
        ProviderInfo("old"),
    )
    problem = "registered, offers no device on this machine"
    info = replace(
        fake.device_info(),
        unusable_providers=(ProviderInfo("openvino", version="1.8.1", problem=problem),),
    )
    told = [line.split(maxsplit=1) for line in lines("pi4", info, info, 0.5)]
    assert [text for heading, text in told if heading == "provider"] == [
        "cpu 1.24.1: Microsoft, CPU",
        "qnn 2.7.0",
        f"openvino 1.8.1: {problem}",
    ]
    assert [text for heading, text in told if heading == "option"] == [
        "--ep qnn --ep-option NAME=VALUE (any option of the provider, as ONNX Runtime takes it)"
    ]


def test_info_puts_the_state_into_words() -> None:
    before = FakeProfiler(lambda model: 1.0).device_info()
    gpu = GpuState("T4", 585.0, temperature_c=81.0, throttle_reasons=("power cap",))
    state = DeviceState(
        0,
        clock_mhz=(600.0, 1500.0),
        governors=("ondemand",) * 2,
        temperature_c=81.25,
        pi_throttled=0x50004,
        busy_s=8.0,
        gpus=(gpu,),
    )
    object.__setattr__(before, "state", DeviceState(0, busy_s=7.0))
    now = FakeProfiler(lambda model: 1.0).device_info()
    object.__setattr__(now, "state", state)
    told = {line[:12].strip(): line[13:] for line in lines("pi4", before, now, 0.5)}
    assert told["clocks"] == "600 to 1500 MHz (ondemand)"
    assert told["temperature"] == "81.2 C"
    assert told["throttling"] == "now: throttled; since the start: under-voltage"
    assert told["load"] == "2.0 processors busy now"
    assert told["gpu"] == "T4, 585 MHz, 81 C, slowed by power cap"
    assert "memory" not in told


@pytest.mark.parametrize(
    ("off_s", "words"),
    [
        (-50 * 365 * 86_400, ", 18250 days behind this workstation's clock"),
        (7300, ", 2 hours ahead of this workstation's clock"),
        (-5, ""),
    ],
)
def test_a_devices_clock_that_is_wrong_is_named(
    off_s: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Raspberry Pi has none of its own, and starts in the past without a network."""
    server = AgentServer("127.0.0.1", 0)
    try:
        monkeypatch.setattr(servicer, "time", SimpleNamespace(time=lambda: time.time() + off_s))
        with devices.connect(f"127.0.0.1:{server.port}") as profiler:
            info = profiler.device_info()
        told = {line[:12].strip(): line[13:] for line in lines("pi4", info, info, 0.5)}
        assert info.time_unix_s is not None
        at = datetime.fromtimestamp(info.time_unix_s, UTC)
        assert told["time"] == f"{at:%Y-%m-%d %H:%M} UTC{words}"
    finally:
        server.stop()


# Names


def test_a_removed_device_leaves_no_secret_behind_and_the_others_alone(config: Path) -> None:
    assert_refused(command("remove", "kitchen"), "'kitchen' is in group all, cold", "--force")
    assert config.read_text() == CONFIG
    result = command("remove", "kitchen", "--force")
    assert result.exit_code == 0, result.output
    assert "group cold removed too" in result.stderr
    assert not config.with_name("devices.kitchen.pem").exists()
    left = tomllib.loads(config.read_text())
    assert list(left["devices"]) == ["pi4", "rack"]
    assert left["groups"] == {"all": ["pi4", "rack"]}
    assert "esm_abcdefgh" not in config.read_text()
    expected = [" mine", "  first", " the kitchen one,", " with a fan", " what is in the rack"]
    assert [c.strip() for c in comments(config)] == [
        *(c.strip() for c in expected),
        "together",
        "everything",
    ]
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_a_certificate_of_the_users_own_is_not_deleted(config: Path) -> None:
    config.write_text(CONFIG.replace("devices.kitchen.pem", "own.pem").partition("# together")[0])
    own = config.with_name("own.pem")
    own.write_text("certificate")
    assert command("rename", "kitchen", "cellar").exit_code == 0
    assert devices.configured()["cellar"].pinned == "own.pem"
    assert command("remove", "cellar").exit_code == 0
    assert own.exists()


def test_a_renamed_device_keeps_its_place_comments_certificate_and_groups(config: Path) -> None:
    result = command("rename", "kitchen", "cellar.2")
    assert result.exit_code == 0, result.output
    expected = CONFIG.replace("[devices.kitchen]", '[devices."cellar.2"]').replace(
        '"kitchen"', '"cellar.2"'
    )
    assert config.read_text() == expected.replace("devices.kitchen.pem", "devices.cellar.2.pem")
    assert config.with_name("devices.cellar.2.pem").read_text() == "certificate"
    assert not config.with_name("devices.kitchen.pem").exists()
    assert devices.groups()["cold"] == ("cellar.2",)
    assert command("rename", "cellar.2", "kitchen").exit_code == 0
    assert tomllib.loads(config.read_text()) == tomllib.loads(CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        '[devices]\na = {address = "x:1"}\nb = {address = "x:2"}\n[groups]\ng = ["a", "b"]\n',
        '[devices.a]\n\naddress = "x:1"\n[groups]\ng = ["a", "b"]\n[devices.b]\naddress = "x:2"',
    ],
)
def test_files_that_people_wrote_their_own_way(config: Path, text: str) -> None:
    config.write_text(text)
    assert command("rename", "a", "c").exit_code == 0
    assert {name: e.address for name, e in devices.configured().items()} == {"c": "x:1", "b": "x:2"}
    assert devices.members("g") == ("c", "b")
    assert command("remove", "c", "--force").exit_code == 0
    assert list(devices.configured()) == ["b"]
    assert command("remove", "b", "--force").exit_code == 0
    assert (devices.configured(), devices.groups()) == ({}, {})


def test_a_file_that_would_come_out_wrong_is_left_alone(config: Path) -> None:
    dotted = 'devices.a.address = "x:1"\ndevices.b.address = "x:2"\ngroups.g = ["a", "b"]\n'
    config.write_text(dotted)
    assert_refused(command("rename", "a", "c"), "cannot be changed", "write [devices.NAME]")
    assert config.read_text() == dotted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rename", "kitchen", "pi4"), ("already a device 'pi4'",)),
        (("rename", "kitchen", "all"), ("already a group 'all'",)),
        (("rename", "kitchen", "../x"), ("not a valid name",)),
        (("rename", "kitchn", "x"), ("unknown device 'kitchn'", "did you mean 'kitchen'")),
        (("remove", "kitchn"), ("unknown device 'kitchn'", "did you mean 'kitchen'")),
        (("group", "pi4", "rack"), ("already a device 'pi4'",)),
        (("group", "local", "rack"), ("not a valid name",)),
        (("group", "new", "pi4", "rak"), ("unknown device 'rak'", "did you mean 'rack'")),
        (("group", "new", "all"), ("unknown device 'all'",)),
        (("add", "all", "127.0.0.1:1"), ("already a group 'all'",)),
        (("info", "all"), ("'all' is a group", "pi4, kitchen, rack")),
        (("doctor", "cold"), ("'cold' is a group", "kitchen")),
    ],
)
def test_names_that_do_not_fit_change_nothing(
    config: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(command(*arguments), *words)
    assert config.read_text() == CONFIG


# Groups


def test_a_group_has_no_agent_twice(config: Path) -> None:
    text = CONFIG + '[devices.again]\naddress = "127.0.0.1:1"\n'
    config.write_text(text)
    result = command("group", "new", "pi4", "rack", "again")
    assert_refused(result, "pi4 and again are the same agent: give one of them")
    assert config.read_text() == text


def test_a_group_is_written_replaced_listed_renamed_and_removed(config: Path) -> None:
    assert command("group", "warm", "rack", "pi4", "rack").exit_code == 0
    assert devices.members("warm") == ("rack", "pi4")
    assert command("group", "warm", "pi4").exit_code == 0
    assert devices.members("warm") == ("pi4",)
    assert set(comments(config)) >= {" mine", " what is in the rack", " together", " everything"}
    assert command("rename", "warm", "hot").exit_code == 0
    listed = command("list")
    assert "group hot: pi4" in listed.stdout.splitlines()
    assert "devices.kitchen.pem is not a certificate: pair again" in listed.stderr
    assert json.loads(command("list", "--json", "-").stdout)["groups"] == {
        "all": ["pi4", "kitchen", "rack"],
        "cold": ["kitchen"],
        "hot": ["pi4"],
    }
    assert command("remove", "hot").exit_code == 0
    assert tomllib.loads(config.read_text()) == tomllib.loads(CONFIG)


def test_any_other_name_stands_for_itself(config: Path) -> None:
    for name in ("pi4", "local", "192.168.1.20:7343", "nobody"):
        assert devices.members(name) == (name,)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ('g = ["pi4", "rak"]', "unknown device 'rak' in group 'g': did you mean 'rack'"),
        ('g = "pi4"', "write a group as g"),
        ("g = []", "write a group as g"),
        ("g = [[1]]", "write a group as g"),
        ('pi4 = ["rack"]', "both a device and a group"),
    ],
)
def test_groups_that_cannot_be_are_named(config: Path, groups: str, words: str) -> None:
    config.write_text(f"{CONFIG.partition('[groups]')[0]}[groups]\n{groups}\n")
    with pytest.raises(UsageError, match=words):
        devices.members("g")
    assert devices.members("local") == ("local",), "which needs no file"
