"""Agents that announce themselves, and hosts that look for them: over real multicast."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from esm_agent.cli import app as agent_app
from esm_agent.operation import service
from esm_host.cli.app import app
from esm_host.transport.discovery import _described
from esm_protos.messages import ANNOUNCED_AS, PROTOCOL_VERSION

PATIENCE_S = 30


def why_not() -> str:
    """What keeps this machine from announcing anything; empty if nothing does."""
    addresses = [ip.ip for a in ifaddr.get_adapters() for ip in a.ips if ip.is_IPv4]
    if all(str(address).startswith("127.") for address in addresses):
        return "there is no network"
    member = socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as both:
        try:
            both.bind(("", 0))
            both.settimeout(2)
            both.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            both.sendto(b"anybody?", ("224.0.0.251", both.getsockname()[1]))
            both.recv(16)
        except OSError as error:
            return f"multicast does not work here: {error}"
    return ""


REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Network:
    """Hears of agents that come and go, and lets strangers speak."""

    def __init__(self) -> None:
        self._heard: queue.Queue[tuple[str, ServiceStateChange]] = queue.Queue()
        self.zeroconf = Zeroconf()
        ServiceBrowser(self.zeroconf, ANNOUNCED_AS, handlers=[self._hear])

    def _hear(self, zeroconf, service_type, name, state_change) -> None:  # type: ignore[no-untyped-def]
        self._heard.put((name, state_change))

    def wait_for(self, port: int, change: ServiceStateChange, name: str = "") -> str:
        """The name of the agent of this port, once it has come or gone."""
        while True:
            who, what = self._heard.get(timeout=PATIENCE_S)
            if what is change and who == (name or who) and (name or self.port_of(who) == port):
                return who

    def port_of(self, name: str) -> int | None:
        info = ServiceInfo(ANNOUNCED_AS, name)
        info.request(self.zeroconf, 3000)
        return info.port

    def say(self, name: str, **others: object) -> None:
        info = ServiceInfo(ANNOUNCED_AS, f"{name}.{ANNOUNCED_AS}", **others)  # type: ignore[arg-type]
        self.zeroconf.register_service(info, cooperating_responders=True)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.zeroconf.close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("ESM_CONFIG", str(path))
    return path


def find(*options: object) -> Result:
    return CliRunner().invoke(app, ["devices", "find", "--seconds", "1.5", *map(str, options)])


def found(port: int) -> dict[str, object]:
    """What is told of the agent of this port: others may run in this network."""
    result = find("--json", "-")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["schema_version"] == 1
    (agent,) = [a for a in shown["agents"] if a["addresses"][0].endswith(f":{port}")]
    assert isinstance(agent, dict)
    return agent


def test_an_agent_is_found_named_and_gone_again(
    network: Network, config: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "ESM_AGENT_CONFIG": str(tmp_path / "agent")}
    paired = CliRunner().invoke(agent_app, ["pair", "laptop"], env=env)
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen([*command, "--announce"], stdout=subprocess.PIPE, env=env) as agent:
        try:
            assert agent.stdout is not None
            port = int(agent.stdout.readline().rpartition(b":")[2])
            name = network.wait_for(port, ServiceStateChange.Added)
            seen = found(port)
            assert seen["hostname"] == socket.gethostname()
            assert (seen["tls"], seen["protocol_version"]) == (True, PROTOCOL_VERSION)
            assert seen["known_as"] == []
            assert f"esm-agent pair --port {port}" in str(seen["next_step"])
            (address, *_) = seen["addresses"]  # type: ignore[misc]

            info = ServiceInfo(ANNOUNCED_AS, name)
            assert info.request(network.zeroconf, 3000)
            told = repr(info.properties)
            for secret in paired.stdout.split()[5::2]:
                assert secret.removeprefix("sha256:") not in told

            config.write_text(f'[devices.lab]\naddress = "{address}"\n')
            assert found(port)["known_as"] == ["lab"]
            agent.send_signal(signal.SIGTERM)
            network.wait_for(port, ServiceStateChange.Removed, name)
            assert agent.wait(PATIENCE_S) == 0
        finally:
            agent.kill()


def test_what_strangers_say_is_cut_and_made_harmless(network: Network, config: Path) -> None:
    evil = "\x1b[2J" + "x" * 200
    properties = {"hostname": evil, "agent": "\n\n", "protocol": "9" * 40, "tls": "maybe"}
    network.say("evil", port=9, parsed_addresses=["192.0.2.77"], properties=properties)
    network.say("nowhere", port=9, parsed_addresses=[], properties={})
    network.say("old", port=10, parsed_addresses=["192.0.2.78"], properties={"protocol": "1"})
    open_agent = {"protocol": str(PROTOCOL_VERSION), "tls": "0"}
    network.say("open", port=11, parsed_addresses=["192.0.2.79"], properties=open_agent)
    for _ in range(5):  # a busy machine may lose a datagram
        result = find()
        assert result.exit_code == 0, result.output
        rows = {line.split()[1]: line for line in result.stdout.splitlines()}
        if {"192.0.2.77:9", "192.0.2.78:10", "192.0.2.79:11"} <= rows.keys():
            break
    assert rows["192.0.2.77:9"].startswith("?[2J" + "x" * 59 + "…  ")
    assert "\x1b" not in result.stdout
    assert rows["192.0.2.78:10"].endswith("upgrade esm-profiler there")
    assert rows["192.0.2.79:11"].endswith("esm-host devices add NAME 192.0.2.79:11")


keys = st.sampled_from([b"hostname", b"machine", b"agent", b"protocol", b"tls"])


@given(
    st.dictionaries(keys, st.none() | st.binary(max_size=300)),
    st.lists(st.ip_addresses().map(str), max_size=200),
    st.none() | st.integers(0, 65_535),
)
def test_whatever_is_announced_can_be_shown(
    properties: dict[bytes, bytes | None], addresses: list[str], port: int | None
) -> None:
    found = _described(properties, addresses, port, {"lab": {"192.0.2.1:7343"}})
    if found is None:
        return
    for text in (found.hostname, found.machine, found.agent_version, found.next_step):
        assert text.isprintable()
        assert len(text) <= 200
    assert 0 < len(found.addresses) <= 64


def test_nobody_there_is_no_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_host.transport.discovery.ANNOUNCED_AS", "_esm-nobody._tcp.local.")
    result = find()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no agents found: start them with esm-agent serve --announce" in result.stderr


def test_an_agent_for_this_machine_alone_has_nothing_to_announce() -> None:
    def assert_refused(code: int, said: str) -> None:
        assert code == 2
        (line,) = said.splitlines()
        assert line.startswith("error: --announce")
        assert "--host 0.0.0.0" in line

    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--announce"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_refused(done.returncode, done.stderr)
    for host in ("localhost", "127.0.0.2", "::1"):
        options = ["--announce", "--host", host]
        result = CliRunner().invoke(agent_app, ["install-service", "--dry-run", "--", *options])
        assert_refused(result.exit_code, result.stderr)


def test_a_service_may_announce_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the project lies, be the folder closed to others."""
    monkeypatch.setattr(service, "_locked_folder", lambda path: None)
    options = ["--host", "0.0.0.0", "--announce"]
    result = CliRunner().invoke(agent_app, ["install-service", "--dry-run", "--", *options])
    assert "serve --host 0.0.0.0 --announce" in result.stdout, result.output


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = ["--host", "0.0.0.0", "--announce"]
    result = CliRunner().invoke(agent_app, ["install-service", "--dry-run", "--", *options])
    assert result.exit_code == 2
    assert "pip install '.[mdns]'" in result.stderr
