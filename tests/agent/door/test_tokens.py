"""Tokens and the certificate in their folder, and the commands that look after them."""

import errno
import fcntl
import json
import re
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from esm_agent.cli import app
from esm_agent.door.auth import CertificateDoor, OpenDoor, TokenDoor, choose_door
from esm_agent.door.certificate import (
    dates,
    fingerprint,
    keep_certificate,
    make_certificate,
    own_certificate,
)
from esm_agent.door.tokens import TokenFile
from esm_agent.errors import AccessError
from tests.certificates import Authority, self_signed


def esm_agent(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"ESM_AGENT_CONFIG": str(folder)})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_pairing_prints_one_line_and_keeps_no_token(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "esm-agent"
    result = esm_agent(folder, "pair", "laptop", "--address", "fe80::1", "--port", "7000")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = re.fullmatch(
        r"esm-host devices add [\w-]+ \[fe80::1\]:7000 --token (\S+) --fingerprint (\S+)", line
    )
    assert found is not None, line
    token, shown = found.groups()
    assert len(token) >= 43, "256 bits"
    own = own_certificate(folder)
    assert own is not None
    assert shown == fingerprint(own[0])
    assert TokenFile(folder).name_of(token) == "laptop"
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert not any(token.encode() in path.read_bytes() for path in folder.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["server.pem", "tokens.json"]


def test_the_next_workstation_gets_a_name_and_the_same_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    lines = [esm_agent(folder, "pair").stdout for _ in range(2)]
    assert [token.name for token in TokenFile(folder).all()] == ["host1", "host2"]
    assert lines[0].split()[-1] == lines[1].split()[-1]
    assert lines[0] != lines[1]
    assert esm_agent(folder, "tokens", "revoke", "host1").exit_code == 0
    assert esm_agent(folder, "tokens", "list").stdout.split()[0] == "host2"
    esm_agent(folder, "pair")
    assert {token.name for token in TokenFile(folder).all()} == {"host1", "host2"}


def test_a_new_certificate_has_another_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    first = esm_agent(folder, "pair").stdout.split()[-1]
    renewed = esm_agent(folder, "pair", "--renew-certificate")
    assert renewed.stdout.split()[-1] != first
    assert "Restart esm-agent serve" in renewed.stderr
    keep_certificate(folder, *self_signed(-3, -1))
    again = esm_agent(folder, "pair")
    own = own_certificate(folder)
    assert own is not None
    assert again.stdout.split()[-1] == fingerprint(own[0])
    assert dates(own[0])[1].year == 9999, "one that has expired is renewed"


def test_the_dates_of_a_new_certificate_exclude_no_clock(tmp_path: Path) -> None:
    """A device without a clock is paired in 1970; certificates are pinned, so dates add nothing."""
    esm_agent(tmp_path / "agent", "pair")
    own = own_certificate(tmp_path / "agent")
    assert own is not None
    begin, end = dates(own[0])
    assert begin.timestamp() <= 0
    assert end == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("address", ["999.1.1.1:22", "pi4:7343", "300.1.1.1"])
def test_a_malformed_address_is_refused(tmp_path: Path, address: str) -> None:
    result = esm_agent(tmp_path / "agent", "pair", "--address", address)
    assert result.exit_code == 2
    said = f"invalid address '{address}': give the name or address of this device, without a port"
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "agent").exists()


def test_pairing_says_how_to_use_and_to_revoke_the_token(tmp_path: Path) -> None:
    result = esm_agent(tmp_path / "agent", "pair", "phone")
    assert result.stderr.splitlines() == [
        "Token created for workstation 'phone'. To revoke it: esm-agent tokens revoke phone",
        "Run this command on the workstation:",
    ]
    assert result.stdout.startswith("esm-host devices add ")


def test_pairing_keeps_a_certificate_that_is_of_tomorrow_by_this_devices_clock(
    tmp_path: Path,
) -> None:
    """The clock may just be late, and other workstations have pinned the certificate."""
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    certificate, key = self_signed(1, 1000)
    keep_certificate(folder, certificate, key)
    assert esm_agent(folder, "pair").stdout.split()[-1] == fingerprint(certificate)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pair", "host1"], ["paired already", "tokens revoke host1"]),
        (["pair", "two words"], ["invalid name 'two words'"]),
        (["pair", "\x1b[2J"], ["invalid name"]),
        (["tokens", "revoke", "nobody"], ["unknown token 'nobody': choose host1"]),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    folder = tmp_path / "agent"
    esm_agent(folder, "pair")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = esm_agent(folder, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
def test_pairing_does_without_locks(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home folders lie on network file systems."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert esm_agent(tmp_path / "agent", "pair", "laptop").exit_code == 0
    assert esm_agent(tmp_path / "agent", "tokens", "revoke", "laptop").exit_code == 0


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o755)
    result = esm_agent(folder, "pair")
    assert result.exit_code == 2
    assert f"chmod 700 {folder}" in result.stderr
    assert not list(folder.iterdir())


def test_pairing_at_the_same_time_loses_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    threads = [threading.Thread(target=TokenFile(folder).add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({token.name for token in TokenFile(folder).all()}) == 8


def test_changes_are_seen_by_whoever_has_the_file_open(tmp_path: Path) -> None:
    running, other = TokenFile(tmp_path / "agent"), TokenFile(tmp_path / "agent")
    assert running.name_of("esm_unknown") is None
    _, token = other.add("laptop")
    assert running.name_of(token) == "laptop"
    other.revoke("laptop")
    assert running.name_of(token) is None


def test_an_unreadable_file_lets_nobody_in(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    tokens = TokenFile(folder)
    _, token = tokens.add()
    assert tokens.name_of(token) == "host1"
    for broken in ("{", '{"version": 2, "tokens": []}', '{"version": 1, "tokens": [{}]}', "[]"):
        (folder / "tokens.json").write_text(broken)
        assert tokens.name_of(token) is None
        with pytest.raises(AccessError, match=r"remove it and run `esm-agent pair`"):
            tokens.all()
    (folder / "tokens.json").unlink()
    assert tokens.name_of(token) is None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EMFILE, "Too many")]
)
def test_a_file_that_cannot_be_opened_is_tried_again(
    tmp_path: Path,
    error: OSError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As when root pairs, or the agent is out of descriptors for a moment."""
    clock = Clock()
    tokens, other = (TokenFile(tmp_path / "agent", clock) for _ in range(2))
    _, token = other.add("laptop")
    assert tokens.name_of(token) == "laptop"
    _, second = other.add("desktop")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda self: raise_(error))
        for _ in range(3):
            assert tokens.name_of(token) == "laptop", "what it held last counts"
            assert tokens.name_of(second) is None
        assert len(caplog.messages) == 1, "said once"
        assert "stay valid for 60 s" in caplog.text
        clock.now = 61.0
        assert tokens.name_of(token) is None
        assert "no token is accepted until it can be read" in caplog.messages[-1]
    assert tokens.name_of(second) == "desktop", "the file itself has not changed"
    assert tokens.name_of(token) == "laptop"
    assert "can be read again" in caplog.messages[-1]


def test_the_first_look_may_fail_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenFile(tmp_path / "agent")
    _, token = tokens.add("laptop")
    with monkeypatch.context() as patched:
        error = PermissionError(errno.EACCES, "Permission denied")
        patched.setattr(Path, "read_bytes", lambda self: raise_(error))
        assert tokens.name_of(token) is None
        with pytest.raises(AccessError, match="chown"):
            tokens.all()
    assert tokens.name_of(token) == "laptop"


def raise_(error: Exception) -> bytes:
    raise error


def test_tokens_are_hashed_as_promised(tmp_path: Path) -> None:
    TokenFile(tmp_path / "agent").add()
    data = json.loads((tmp_path / "agent" / "tokens.json").read_text())
    assert set(data["tokens"][0]) == {"name", "sha256", "created"}


def test_the_certificate_is_what_hosts_expect() -> None:
    certificate = x509.load_pem_x509_certificate(make_certificate()[0])
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["esm-agent"]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca, "its key vouches for nobody else"
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=12)


# Which door is opened


def test_the_door_follows_from_where_the_agent_listens(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    assert isinstance(choose_door(folder, beyond_loopback=False), OpenDoor)
    assert isinstance(choose_door(folder, beyond_loopback=True, insecure=True), OpenDoor)
    for options in ({"beyond_loopback": True}, {"beyond_loopback": False, "tls": True}):
        with pytest.raises(AccessError, match="run `esm-agent pair` first"):
            choose_door(folder, **options)
    esm_agent(folder, "pair")
    for options in ({"beyond_loopback": True}, {"beyond_loopback": False, "tls": True}):
        assert isinstance(choose_door(folder, **options), TokenDoor)


def test_an_agent_serves_whatever_the_dates_of_its_certificate_and_names_the_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "agent"
    esm_agent(folder, "pair")
    choose_door(folder, beyond_loopback=True)
    assert not caplog.messages
    keep_certificate(folder, *self_signed(-2, 20.5))
    choose_door(folder, beyond_loopback=True)
    assert "expires in 20 days" in caplog.text
    assert "--renew-certificate" in caplog.text
    for days in ((-3, -1), (1, 3)):
        caplog.clear()
        keep_certificate(folder, *self_signed(*days))
        assert isinstance(choose_door(folder, beyond_loopback=True), TokenDoor)
        assert "this device's clock says" in caplog.text
        assert "--renew-certificate" in caplog.text


def test_mutual_tls_takes_three_files_that_fit(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours", "our CA")
    one, other = ours.issue("one"), ours.issue("other")
    door = choose_door(tmp_path, False, False, False, one.certificate, one.key, ours.ca)
    assert isinstance(door, CertificateDoor)
    for files, words in [
        ((one.certificate, one.key, None), "all of"),
        ((one.certificate, other.key, ours.ca), "is invalid"),
        ((one.certificate, one.key, one.key), "is invalid"),
        ((tmp_path / "missing", one.key, ours.ca), "No such file"),
    ]:
        with pytest.raises(AccessError, match=words):
            choose_door(tmp_path, False, False, False, *files)
    with pytest.raises(AccessError, match="leave it out"):
        choose_door(tmp_path, True, False, True, one.certificate, one.key, ours.ca)
    with pytest.raises(AccessError, match="leave it out"):
        choose_door(tmp_path, True, tls=True, insecure=True)


def test_serving_others_unpaired_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--host", "0.0.0.0"]
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "`esm-agent pair`" in line
    assert "--insecure" in line


def test_plain_serving_loads_no_cryptography() -> None:
    program = (
        "import sys, esm_agent.cli, esm_agent.serving.server;print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
