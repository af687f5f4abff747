"""The way to an agent: past the environment's proxies, through one that was asked for."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ifaddr
import pytest

from esm_agent.door.auth import Brake, TokenDoor
from esm_agent.door.certificate import fingerprint, make_certificate
from esm_agent.door.tokens import TokenFile
from esm_agent.serving.server import AgentServer
from esm_host.errors import AuthError, UnreachableError, UsageError
from esm_host.transport.access import PLAIN, fetch_certificate, pinned
from esm_host.transport.remote import RemoteProfiler

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Proxy:
    """Answers CONNECT and leads every tunnel to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://ada:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += client.recv(1)
        self.asked.append(request.decode())
        if self._port == 0:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            client.close()
            return
        agent = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(b"HTTP/1.1 200 OK\r\nVia: test\r\n\r\n")
        threading.Thread(target=pump, args=(agent, client), daemon=True).start()
        pump(client, agent)


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, bytes, str]]:
    """Port, certificate and token of an agent with TLS on this machine."""
    tokens = TokenFile(tmp_path_factory.mktemp("agent") / "tokens")
    _, token = tokens.add("laptop")
    certificate, key = make_certificate()
    server = AgentServer("127.0.0.1", 0, door=TokenDoor(certificate, key, tokens, Brake(0.0)))
    yield server.port, certificate, token
    server.stop()


@pytest.fixture
def deaf() -> Iterator[str]:
    """A proxy that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_environments_proxies_are_ignored(
    paired: tuple[int, bytes, str], deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate, token = paired
    for name in PROXIES:
        monkeypatch.setenv(name, deaf)
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch_certificate(f"127.0.0.1:{port}", fingerprint(certificate)) == certificate
    with RemoteProfiler(f"127.0.0.1:{port}", "pi4", pinned(certificate, token)) as profiler:
        profiler.reserve("test")
        assert profiler.device_info().hostname


def test_a_local_agent_is_reached_past_a_proxy(deaf: str, tmp_path: Path) -> None:
    """As a user has it: the proxy is in the environment of the whole command."""
    program = (
        "from esm_host.transport.local import LocalProfiler\n"
        "with LocalProfiler() as local: print(local.device_info().hostname)"
    )
    environment = dict.fromkeys(PROXIES, deaf) | {"ESM_PROXY": deaf, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, socket.gethostname()), done.stderr


def test_a_proxy_that_was_asked_for_is_used_for_all(
    paired: tuple[int, bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's address leads nowhere from here: only the proxy knows the way."""
    port, certificate, token = paired
    proxy = Proxy(port)
    monkeypatch.setenv("ESM_PROXY", proxy.url)
    try:
        address = "pi4.invalid:7343"
        assert fetch_certificate(address, fingerprint(certificate)) == certificate
        with RemoteProfiler(address, "pi4", pinned(certificate, token)) as profiler:
            assert profiler.device_info().hostname
        with (
            RemoteProfiler(address, "pi4", PLAIN) as profiler,
            pytest.raises(AuthError, match="requires TLS"),
        ):
            profiler.device_info()
    finally:
        proxy.close()
    for asked in proxy.asked:
        assert asked.startswith("CONNECT pi4.invalid:7343 HTTP/1.")
        assert "YWRhOnNlY3JldA==" in asked, "the proxy's own account"


def test_a_proxy_that_refuses_is_an_agent_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(0)
    monkeypatch.setenv("ESM_PROXY", proxy.url)
    try:
        with pytest.raises(UnreachableError, match=r"no agent answers at pi4\.invalid:7343"):
            fetch_certificate("pi4.invalid:7343", "sha256:" + "0" * 64)
    finally:
        proxy.close()


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM_PROXY", "http://ada:geheim@nonsense.invalid:1")
    words = r"^the proxy nonsense\.invalid:1 \(ESM_PROXY\) does not answer: unset it or correct it$"
    with pytest.raises(UnreachableError, match=words):
        fetch_certificate("pi4.invalid:7343", "sha256:" + "0" * 64)
    with (
        RemoteProfiler("pi4.invalid:7343", "pi4") as profiler,
        pytest.raises(UnreachableError, match=words),
    ):
        profiler.device_info()


@pytest.mark.parametrize(
    "value", ["proxy", "https://proxy:1", "http://proxy", "http://u:geheim@:1"]
)
def test_a_malformed_proxy_is_refused_without_its_password(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESM_PROXY", value)
    with pytest.raises(
        UsageError, match="ESM_PROXY is not a proxy: give http://HOST:PORT"
    ) as caught:
        RemoteProfiler("pi4.invalid:7343")
    assert "geheim" not in str(caught.value)


# Addresses


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("pi4", "HOST:PORT"),
        ("fd00::5:7343", r"\[fd00::5\]:7343"),
        ("[fd00::5:7343", "HOST:PORT"),
        ("[fd00:::5]:7343", "not a host name or IP address"),
        ("[pi4]:7343", "not a host name or IP address"),
        (f"{'a' * 64}.lan:7343", "1 to 63 characters"),
        ("pi4..lan:7343", "1 to 63 characters"),
        (f"{'a.' * 200}lan:7343", "253 characters"),
        ("pi4:70000", "outside 1 to 65535"),
        ("pi4:0", "outside 1 to 65535"),
        ("pi 4:7343", "not a host name or IP address"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RemoteProfiler(address)
    with pytest.raises(UsageError, match=words):
        fetch_certificate(address, "sha256:" + "0" * 64)


def ipv6_addresses() -> list[str]:
    """Of this machine, each as it is written between brackets."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if ip.is_IPv6:
                zone = f"%{adapter.nice_name}" if ip.ip[0].startswith("fe80") else ""
                found.append(f"{ip.ip[0]}{zone}")
    return found


@pytest.mark.skipif(not ipv6_addresses(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::", *ipv6_addresses()])
def test_agents_listen_on_ipv6_and_are_reached_there(
    host: str, paired: tuple[int, bytes, str], tmp_path: Path
) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    _, token = tokens.add("laptop")
    certificate, key = make_certificate()
    server = AgentServer(host, 0, door=TokenDoor(certificate, key, tokens, Brake(0.0)))
    try:
        address = f"[{'::1' if host == '::' else host}]:{server.port}"
        assert fetch_certificate(address, fingerprint(certificate)) == certificate
        with RemoteProfiler(address, "pi4", pinned(certificate, token)) as profiler:
            assert profiler.device_info().hostname
        with (
            RemoteProfiler(address) as profiler,
            pytest.raises(AuthError, match="requires TLS"),
        ):
            profiler.device_info()
    finally:
        server.stop()
