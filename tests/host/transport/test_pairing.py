"""Pairing as users do it, through both commands, and what the host keeps of it."""

import ipaddress
import json
import shlex
import stat
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner, Result

from esm_agent.cli import app as agent_app
from esm_agent.door.auth import Brake, CertificateDoor, TokenDoor
from esm_agent.door.certificate import fingerprint, make_certificate
from esm_agent.door.tokens import TokenFile
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app as host_app
from esm_host.errors import AuthError, UsageError
from esm_host.transport.devices import connect
from esm_host.transport.patient import PatientProfiler
from esm_host.transport.validity import out_of_dates
from tests.certificates import Authority, self_signed
from tests.helpers import ARITHMETIC


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this host keeps its devices; the folder is not there yet."""
    path = tmp_path / "host" / "devices.toml"
    monkeypatch.setenv("ESM_CONFIG", str(path))
    monkeypatch.delenv("ESM_TOKEN", raising=False)
    return path


@pytest.fixture(scope="module")
def agent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents") / "esm-agent"


@pytest.fixture(scope="module")
def port(agent_folder: Path) -> Iterator[int]:
    """Of a paired agent that runs with TLS, as a program."""
    assert esm_agent(agent_folder, "pair", "first").exit_code == 0
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--tls", "--port", "0"]
    with subprocess.Popen(
        [*command, "--until-stdin-closes", "--config", str(agent_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdin is not None
        yield int(agent.stdout.readline().rpartition(":")[2])
        agent.stdin.close()


def esm_agent(folder: Path, *arguments: object) -> Result:
    env = {"ESM_AGENT_CONFIG": str(folder)}
    return CliRunner().invoke(agent_app, list(map(str, arguments)), env=env)


def esm_host(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(host_app, list(map(str, arguments)), input=stdin)


def pair(folder: Path, name: str, port: int, device: str = "pi4") -> list[str]:
    """The line to paste, as arguments of esm-host; for a device of this name."""
    result = esm_agent(folder, "pair", name, "--address", "127.0.0.1", "--port", port)
    assert result.exit_code == 0, result.output
    program, *arguments = shlex.split(result.stdout)
    assert program == "esm-host"
    arguments[2] = device
    return arguments


def assert_refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert result.stdout == ""


def test_pair_paste_time_revoke(config: Path, agent_folder: Path, port: int) -> None:
    arguments = pair(agent_folder, "laptop", port)
    added = esm_host(*arguments)
    assert added.exit_code == 0, added.output
    assert added.stdout.startswith("pi4: ")
    assert "onnxruntime" in added.stdout
    timed = esm_host("time", ARITHMETIC, "--device", "pi4", "--runs", 5)
    assert timed.exit_code == 0, timed.output
    assert "arithmetic" in timed.stdout
    (row,) = json.loads(esm_host("devices", "list", "--json", "-").stdout)["devices"]
    assert (row["name"], row["state"], row["waiting"]) == ("pi4", "free", 0)

    assert esm_agent(agent_folder, "tokens", "revoke", "laptop").exit_code == 0
    refused = esm_host("time", ARITHMETIC, "--device", "pi4", "--runs", 5)
    assert_refused(refused, 77, "pi4 refused", "`esm-agent pair`")
    listed = esm_host("devices", "list")
    assert "not authorised" in listed.stdout
    assert listed.exit_code == 0


def test_what_is_kept_is_private(config: Path, agent_folder: Path, port: int) -> None:
    arguments = pair(agent_folder, "private", port)
    assert esm_host(*arguments).exit_code == 0
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in config.parent.iterdir()}
    assert files == {"devices.toml": 0o600, "devices.pi4.pem": 0o600}
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700


def test_comments_stay_and_names_are_not_taken_twice(
    config: Path, agent_folder: Path, port: int
) -> None:
    config.parent.mkdir()
    text = '# mine\n[devices.old]\naddress = "127.0.0.1:1" # asleep\nca = "x"\n'
    config.write_text(text)
    arguments = pair(agent_folder, "comments", port)
    assert esm_host(*arguments).exit_code == 0
    kept = config.read_text()
    assert kept.startswith(text)
    assert_refused(esm_host(*arguments), 2, "already a device 'pi4'", "--force")
    assert config.read_text() == kept
    arguments[2] = "old"
    assert esm_host(*arguments, "--force").exit_code == 0
    assert "# mine" in config.read_text()
    entry = tomllib.loads(config.read_text())["devices"]["old"]
    assert set(entry) == {"address", "pinned", "token"}, "nothing is left of what it was"


def test_the_token_may_come_from_elsewhere(
    config: Path, agent_folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = pair(agent_folder, "elsewhere", port)
    at = arguments.index("--token")
    token = arguments[at + 1]
    assert (
        esm_host(*arguments[: at + 1], "-", *arguments[at + 2 :], stdin=f"{token}\n").exit_code == 0
    )
    assert tomllib.loads(config.read_text())["devices"]["pi4"]["token"] == token

    monkeypatch.setenv("ESM_TOKEN", "esm_of-somebody-else")
    with connect("pi4") as profiler, pytest.raises(AuthError):
        profiler.device_info()  # the environment beats the file
    assert esm_host(*arguments, "--force").exit_code == 0, "a flag beats the environment"

    monkeypatch.setenv("ESM_TOKEN", token)
    assert esm_host(*arguments[:at], *arguments[at + 2 :], "--force").exit_code == 0
    assert "token" not in tomllib.loads(config.read_text())["devices"]["pi4"], "it is not stored"
    with connect("pi4") as profiler:
        profiler.device_info()
    monkeypatch.delenv("ESM_TOKEN")
    with pytest.raises(UsageError, match="set ESM_TOKEN"):
        connect("pi4")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"--fingerprint": "sha256:" + "0" * 64}, 77, "another certificate"),
        ({"--fingerprint": "0" * 64}, 2, "not a fingerprint"),
        ({"--fingerprint": None}, 2, "needs a fingerprint"),
        ({"--token": "esm_wrong-but-well-formed"}, 77, "esm-agent pair"),
        ({"--token": "two words"}, 2, "malformed token"),
        ({"--token": None}, 2, "needs a fingerprint"),
        ({"address": "127.0.0.1:1"}, 69, "no agent answers"),
        ({"address": "127.0.0.1"}, 2, "HOST:PORT"),
        ({"name": "local"}, 2, "not a valid name"),
        ({"name": "../x"}, 2, "not a valid name"),
    ],
)
def test_nothing_is_written_unless_the_agent_lets_this_host_in(
    config: Path,
    agent_folder: Path,
    port: int,
    change: dict[str, str | None],
    code: int,
    words: str,
) -> None:
    line = pair(agent_folder, uuid.uuid4().hex, port)
    values = {"name": line[2], "address": line[3], line[4]: line[5], line[6]: line[7]} | change
    arguments = [values.pop("name"), values.pop("address")]
    for option, value in values.items():
        arguments += [option, value] if value is not None else []
    result = esm_host("devices", "add", *arguments)
    assert_refused(result, code, words)
    assert line[5] not in result.stderr, "no token in messages"
    assert not config.parent.exists()


def test_plain_agents_need_no_token(config: Path) -> None:
    server = AgentServer("127.0.0.1", 0)
    try:
        result = esm_host("devices", "add", "here", f"127.0.0.1:{server.port}")
        assert result.exit_code == 0, result.output
        assert "warning" not in result.stderr
        line = (
            f"devices add here 127.0.0.1:{server.port} --force --token esm_abcdefgh --fingerprint"
        )
        refused = esm_host(*line.split(), "sha256:" + "0" * 64)
        assert_refused(refused, 77, "does not speak TLS")
    finally:
        server.stop()
    assert tomllib.loads(config.read_text())["devices"]["here"] == {
        "address": f"127.0.0.1:{server.port}"
    }


def test_other_machines_without_a_token_are_warned_of(config: Path) -> None:
    result = esm_host("devices", "add", "there", "127.unknown.invalid:7343")
    assert "warning: 127.unknown.invalid:7343 is another machine" in result.stderr
    assert_refused(result, 69, "no agent answers")


def test_a_device_that_moved_keeps_its_token_and_certificate(
    config: Path, agent_folder: Path, port: int
) -> None:
    arguments = pair(agent_folder, "moved", port)
    assert esm_host(*arguments).exit_code == 0
    text = config.read_text()
    config.write_text(f"# mine\n{text.replace('127.0.0.1', '192.0.2.99')}")
    certificate = (config.parent / "devices.pi4.pem").read_bytes()

    moved = esm_host("devices", "set", "pi4", "--address", f"localhost:{port}")
    assert moved.exit_code == 0, moved.output
    assert config.read_text() == f"# mine\n{text.replace('127.0.0.1', 'localhost')}"
    assert (config.parent / "devices.pi4.pem").read_bytes() == certificate
    with connect("pi4") as profiler:
        assert profiler.device_info().hostname


def test_a_device_does_not_move_to_where_another_answers_or_none(
    config: Path, agent_folder: Path, port: int, tmp_path: Path
) -> None:
    assert esm_host(*pair(agent_folder, "stays", port)).exit_code == 0
    kept = config.read_text()
    tokens = TokenFile(tmp_path / "other")
    other = AgentServer("127.0.0.1", 0, door=TokenDoor(*make_certificate(), tokens, Brake(0.0)))
    try:
        move = ["devices", "set", "pi4", "--address"]
        refused = esm_host(*move, f"127.0.0.1:{other.port}")
        assert_refused(refused, 77, "another certificate than the pinned one")
        assert_refused(esm_host(*move, "127.0.0.1:1"), 69, "no agent answers")
        assert_refused(esm_host(*move, "127.0.0.1"), 2, "HOST:PORT")
        assert_refused(esm_host(*move[:2], "pi5", *move[3:], "127.0.0.1:1"), 2, "'pi4'")
        assert esm_host(*move[:3]).exit_code == 2
    finally:
        other.stop()
    assert config.read_text() == kept


def test_mutual_tls_from_both_ends(config: Path, tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours", "our CA")
    server = ours.issue("server", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    ada = ours.issue("ada")
    door = CertificateDoor(
        server.certificate.read_bytes(), server.key.read_bytes(), ours.ca.read_bytes()
    )
    agent = AgentServer("127.0.0.1", 0, door=door)
    try:
        add = ["devices", "add", "rack", f"127.0.0.1:{agent.port}", "--ca", ours.ca]
        assert_refused(esm_host(*add), 2, "mutual TLS needs --ca, --certificate and --key")
        files = ["--certificate", ada.certificate, "--key", ada.key]
        result = esm_host(*add, *files)
        assert result.exit_code == 0, result.output
        assert esm_host("devices", "list").stdout.splitlines()[1].split()[2] == "free"
        eve = Authority(tmp_path / "theirs", "another CA").issue("eve")
        refused = esm_host(*add, "--certificate", eve.certificate, "--key", eve.key, "--force")
        assert_refused(refused, 77, "does not accept this host's certificate")
    finally:
        agent.stop()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('token = "esm_abcdefgh"', "no certificate"),
        ('token = "esm_abcdefgh"\npinned = "missing.pem"', "missing.pem: No such file"),
        ('pinned = "x.pem"', "no token"),
        ('ca = "x.pem"', "all of ca, certificate and key"),
        ('ca = "x.pem"\ncertificate = "x.pem"\nkey = "x.pem"', "x.pem"),
    ],
)
def test_a_token_is_not_sent_to_just_anybody(config: Path, entry: str, words: str) -> None:
    config.parent.mkdir()
    config.write_text(f'[devices.pi4]\naddress = "127.0.0.1:1"\n{entry}\n')
    with pytest.raises(UsageError, match=words):
        connect("pi4")
    listed = esm_host("devices", "list")
    assert listed.exit_code == 0
    assert "misconfigured" in listed.stdout
    assert words in listed.stderr


def test_a_token_in_the_environment_is_kept_from_plain_agents(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent would refuse it, had it been sent."""
    monkeypatch.setenv("ESM_TOKEN", "esm_of-another-device")
    server = AgentServer("127.0.0.1", 0)
    try:
        assert esm_host("devices", "add", "here", f"127.0.0.1:{server.port}").exit_code == 0
        with connect("here") as named, connect(f"127.0.0.1:{server.port}") as unnamed:
            assert named.device_info().identity() == unnamed.device_info().identity()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("days", "valid"), [((-3, -1), False), ((1, 3), False), ((-1, 36_500), True), ((-1, 1), True)]
)
def test_a_host_reads_the_dates_of_certificates(days: tuple[float, float], valid: bool) -> None:
    """Years from 2050 on are written in another form than those before."""
    certificate, key = self_signed(*days)
    assert (out_of_dates(certificate) is None) == valid
    assert out_of_dates(key + certificate) == out_of_dates(certificate)
    if not valid:
        parsed = x509.load_pem_x509_certificate(certificate)
        dates = (parsed.not_valid_before_utc, parsed.not_valid_after_utc)
        begin, end = (f"{date:%Y-%m-%d}" for date in dates)
        assert f"valid from {begin} to {end}" in (out_of_dates(certificate) or "")
    assert out_of_dates(make_certificate()[0]) is None
    assert out_of_dates(b"no certificate") is None


def test_patience_is_for_absent_devices_only(tmp_path: Path, config: Path) -> None:
    certificate, key = make_certificate()
    tokens = TokenFile(tmp_path / "tokens")
    _, token = tokens.add("laptop")
    door = TokenDoor(certificate, key, tokens, Brake(longest_s=0.0))
    server = AgentServer("127.0.0.1", 0, door=door)
    try:
        add = ["devices", "add", "pi4", f"127.0.0.1:{server.port}", "--token", token]
        assert esm_host(*add, "--fingerprint", fingerprint(certificate)).exit_code == 0
        tokens.revoke("laptop")
        waits: list[str] = []
        with PatientProfiler(connect("pi4"), 3600.0, waits.append) as patient:
            with pytest.raises(AuthError, match="`esm-agent pair`"):
                patient.device_info()
            (config.parent / "devices.pi4.pem").write_bytes(make_certificate()[0])
        with (
            PatientProfiler(connect("pi4"), 3600.0, waits.append) as patient,
            pytest.raises(AuthError, match="another certificate"),
        ):
            patient.reserve("test")
        assert waits == []
    finally:
        server.stop()


def test_the_list_shows_who_has_what(config: Path) -> None:
    assert "no devices yet" in esm_host("devices", "list").stderr
    server = AgentServer("127.0.0.1", 0)
    address = f"127.0.0.1:{server.port}"
    try:
        config.parent.mkdir()
        config.write_text(
            f'[devices.here]\naddress = "{address}"\n[devices.gone]\naddress = "127.0.0.1:1"\n'
        )
        with connect("here") as profiler:
            profiler.reserve("profile \x1b[2Jresnet")
            listed = esm_host("devices", "list")
            rows = json.loads(esm_host("devices", "list", "--json", "-").stdout)["devices"]
    finally:
        server.stop()
    assert listed.exit_code == 0, listed.output
    heading, here, gone = listed.stdout.splitlines()
    assert heading.split() == ["name", "address", "state", "waiting", "agent", "runtime", "free"]
    assert "(profile ?[2Jresnet)" in here, "others do not move this terminal's cursor"
    assert "GiB" in here
    assert gone.split() == ["gone", "127.0.0.1:1", "unreachable", "-", "-", "-", "-"]
    assert "gone: no agent answers" in listed.stderr
    assert [row["state"] for row in rows] == ["held", "unreachable"]
    assert rows[0]["client"] == "anyone"
    out = config.parent / "list.json"
    assert esm_host("devices", "list", "--json", out).exit_code == 0
    assert json.loads(out.read_text())["schema_version"] == 1
