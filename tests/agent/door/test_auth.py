"""Who comes in, on every method of every service, over real connections."""

import hashlib
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2

from esm_agent.door.auth import LISTED, PAIR, Brake, CertificateDoor, Door, OpenDoor, TokenDoor
from esm_agent.door.certificate import make_certificate
from esm_agent.door.tokens import TokenFile
from esm_agent.serving.server import AgentServer
from esm_host.errors import AuthError, UnreachableError
from esm_host.transport.access import PLAIN, Access, mutual, pinned
from esm_host.transport.remote import RemoteProfiler
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, Case, File, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from tests.certificates import Authority, Files, self_signed

METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
NOWAIT = Brake(longest_s=0.0)


def call(
    channel: grpc.Channel, path: str, method: MethodDescriptor | None = None, **options: object
) -> tuple[grpc.StatusCode, str]:
    """Calls with an empty request; the status, and its details."""
    requests = method is not None and method.client_streaming
    responses = method is not None and method.server_streaming
    kind = f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}"
    request = iter([b""]) if requests else b""
    try:
        reply = getattr(channel, kind)(path)(request, timeout=20, **options)
        if responses:
            next(reply)  # the first tells: health's Watch has no last
            reply.cancel()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    except StopIteration:
        pass  # none, and none missing
    return grpc.StatusCode.OK, ""


@dataclass(frozen=True)
class Agents:
    """Running agents, one of each kind, and what opens them."""

    addresses: dict[str, str]
    token: str
    revoked: str
    certificate: bytes
    expired: bytes
    early: bytes
    client: Files
    foreign: Files
    late: Files
    ca: Path
    foreign_ca: Path


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    folder = tmp_path_factory.mktemp("agents")
    tokens = TokenFile(folder / "tokens")
    _, token = tokens.add("laptop")
    _, revoked = tokens.add("lost")
    tokens.revoke("lost")
    certificate, key = make_certificate()
    expired, expired_key = self_signed(-2, -1)
    early, early_key = self_signed(1, 2)
    ours, theirs = Authority(folder / "ours", "our CA"), Authority(folder / "theirs", "another CA")
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = ours.issue("server", loopback)
    doors: dict[str, Callable[[], Door]] = {
        "plain": lambda: OpenDoor(NOWAIT),
        "tls": lambda: TokenDoor(certificate, key, tokens, NOWAIT),
        "expired": lambda: TokenDoor(expired, expired_key, tokens, NOWAIT),
        "early": lambda: TokenDoor(early, early_key, tokens, NOWAIT),
        "mutual": lambda: CertificateDoor(
            server.certificate.read_bytes(), server.key.read_bytes(), ours.ca.read_bytes(), NOWAIT
        ),
    }
    servers = {name: AgentServer("127.0.0.1", 0, door=make()) for name, make in doors.items()}
    addresses = {name: f"127.0.0.1:{server.port}" for name, server in servers.items()}
    client, foreign = ours.issue("ada"), theirs.issue("eve")
    late = ours.issue("late", begin_days=-3)
    yield Agents(
        addresses,
        token,
        revoked,
        certificate,
        expired,
        early,
        client,
        foreign,
        late,
        ours.ca,
        theirs.ca,
    )
    for running in servers.values():
        running.stop()


def good_token(agents: Agents) -> Access:
    return pinned(agents.certificate, agents.token)


def good_certificate(agents: Agents) -> Access:
    return mutual(agents.ca, agents.client.certificate, agents.client.key)


CASES: dict[str, tuple[str, Callable[[Agents], Access], grpc.StatusCode]] = {
    "no token": (
        "tls",
        lambda a: replace(good_token(a), token=None),
        grpc.StatusCode.UNAUTHENTICATED,
    ),
    "wrong token": (
        "tls",
        lambda a: replace(good_token(a), token=a.token + "x"),
        grpc.StatusCode.UNAUTHENTICATED,
    ),
    "revoked token": (
        "tls",
        lambda a: replace(good_token(a), token=a.revoked),
        grpc.StatusCode.UNAUTHENTICATED,
    ),
    "expired server certificate": (
        "expired",
        lambda a: pinned(a.expired, a.token),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "server certificate of tomorrow": (
        "early",
        lambda a: pinned(a.early, a.token),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "another server's certificate": (
        "tls",
        lambda a: pinned(make_certificate()[0], a.token),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "server certificate of another CA": (
        "mutual",
        lambda a: mutual(a.foreign_ca, a.client.certificate, a.client.key),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "client certificate of another CA": (
        "mutual",
        lambda a: mutual(a.ca, a.foreign.certificate, a.foreign.key),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "client certificate that has expired": (
        "mutual",
        lambda a: mutual(a.ca, a.late.certificate, a.late.key),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "no client certificate": (
        "mutual",
        lambda a: Access(roots=a.ca.read_bytes()),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "a token in place of a client certificate": (
        "mutual",
        lambda a: Access(roots=a.ca.read_bytes(), token=a.token),
        grpc.StatusCode.UNAVAILABLE,
    ),
    "plain text to a port with TLS": ("tls", lambda a: PLAIN, grpc.StatusCode.UNAVAILABLE),
}
UNKNOWN = ("/esm.v1.Profiler/Unknown", "/unknown.Service/Method")


@pytest.mark.parametrize("case", CASES)
def test_nobody_else_comes_in(agents: Agents, case: str) -> None:
    kind, access, status = CASES[case]
    with access(agents).channel(agents.addresses[kind], ()) as channel:
        answers = {path: call(channel, path, method) for path, method in METHODS.items()}
        answers |= {path: call(channel, path) for path in UNKNOWN}
    assert {path: code for path, (code, _) in answers.items()} == dict.fromkeys(answers, status)
    if status is grpc.StatusCode.UNAUTHENTICATED:
        assert {text for _, text in answers.values()} == {PAIR}, "the same, whatever is wrong"


def test_a_token_over_plain_text_is_refused_and_burnt(agents: Agents) -> None:
    metadata = (("authorization", f"Bearer {agents.token}"),)
    with grpc.insecure_channel(agents.addresses["plain"]) as channel:
        for path, method in (METHODS | dict.fromkeys(UNKNOWN)).items():
            code, text = call(channel, path, method, metadata=metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, path
            assert "others can read it" in text
            assert "tokens revoke" in text


@pytest.mark.parametrize(
    ("kind", "access"),
    [("plain", lambda a: PLAIN), ("tls", good_token), ("mutual", good_certificate)],
)
def test_whoever_may_comes_in_to_what_is_listed(
    agents: Agents, kind: str, access: Callable[[Agents], Access]
) -> None:
    with access(agents).channel(agents.addresses[kind], ()) as channel:
        for path, method in METHODS.items():
            code, text = call(channel, path, method)
            assert (code in REFUSED) == (path not in LISTED), (path, code, text)
            assert code is not grpc.StatusCode.UNAVAILABLE, (path, text)
        for path in UNKNOWN:
            assert call(channel, path)[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["GetDeviceInfo", "MeasureBlock"])
def test_a_method_that_is_not_listed_is_refused_with_a_valid_token_too(
    agents: Agents, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/esm.v1.Profiler/{method}"
    monkeypatch.setattr("esm_agent.door.auth.LISTED", LISTED - {path})
    with good_token(agents).channel(agents.addresses["tls"], ()) as channel:
        code, text = call(channel, path, METHODS[path])
    assert (code, path in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


def test_all_of_todays_methods_are_listed() -> None:
    assert set(METHODS) <= LISTED


def test_a_refusal_reads_none_of_what_is_sent(agents: Agents) -> None:
    """A host that could send for ever is told at once."""
    sent = 0

    def requests() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(1 << 20)

    access = replace(good_token(agents), token=agents.revoked)
    with access.channel(agents.addresses["tls"], ()) as channel:
        replies = channel.stream_stream("/esm.v1.Profiler/MeasureBlock")(requests(), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert sent < 100


@pytest.mark.parametrize(
    "values",
    [("Bearer",), ("Bearer ",), ("Basic {}",), ("Bearer {}", "Bearer {}"), ("{}",)],
)
def test_only_one_plain_bearer_token_opens(agents: Agents, values: tuple[str, ...]) -> None:
    metadata = tuple(("authorization", value.format(agents.token)) for value in values)
    access = replace(good_token(agents), token=None)
    with access.channel(agents.addresses["tls"], ()) as channel:
        code, _ = call(channel, "/esm.v1.Profiler/GetDeviceInfo", metadata=metadata)
    assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("kind", "access", "client"),
    [
        ("plain", lambda a: PLAIN, "anyone"),
        ("tls", good_token, "laptop"),
        ("mutual", good_certificate, "ada"),
    ],
)
def test_the_agent_knows_its_clients_by_name(
    agents: Agents, kind: str, access: Callable[[Agents], Access], client: str
) -> None:
    with RemoteProfiler(agents.addresses[kind], "pi4", access(agents)) as profiler:
        profiler.reserve("test")
        holder = profiler.device_info().occupancy.holder
        assert holder is not None
        assert holder.client == client


def test_a_name_that_is_given_again_has_none_of_the_old_ones_files(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    certificate, key = make_certificate()
    door = TokenDoor(certificate, key, tokens, NOWAIT)
    server = AgentServer("127.0.0.1", 0, door=door, cache_folder=tmp_path / "cache")
    data, path = bytes(100), tmp_path / "inputs"
    path.write_bytes(data)
    file = File(hashlib.sha256(data).digest(), len(data), path)
    block = Block("b", MeasureSpec(runs=1), (Model("m", b"", Case(inputs=file)),))
    sent = []
    try:
        for _ in range(2):
            _, token = tokens.add("laptop")
            access = pinned(certificate, token)
            with RemoteProfiler(f"127.0.0.1:{server.port}", "pi4", access) as profiler:
                profiler.reserve("test")
                offer = pb.OfferRequest(
                    protocol_version=PROTOCOL_VERSION,
                    lease_id=profiler._lease.lease_id,
                    files=[convert.file_to_pb(file)],
                )
                (missing,) = profiler._stub.Offer(offer).missing
                sent.append(bool(missing.nonce))
                profiler.measure(block)
                assert not profiler._stub.Offer(offer).missing
            tokens.revoke("laptop")
    finally:
        server.stop()
    assert sent == [False, True], "the second one has to prove that it has the file"


# What hosts make of it


@pytest.mark.parametrize(
    ("case", "cure"),
    [
        ("wrong token", "esm-agent pair"),
        ("expired server certificate", "expired.*clock.*esm-agent pair --renew-certificate"),
        ("server certificate of tomorrow", "not yet valid.*clock.*esm-agent pair --renew"),
        ("another server's certificate", "another certificate.*if it was renewed.*esm-agent pair"),
        ("server certificate of another CA", "certificate.*not valid.*authority"),
        ("client certificate of another CA", "does not accept this host's certificate"),
        ("client certificate that has expired", "does not accept.*valid from.*clock"),
        ("plain text to a port with TLS", "requires TLS.*esm-agent pair"),
    ],
)
def test_a_host_says_what_is_wrong(agents: Agents, case: str, cure: str) -> None:
    kind, access, _ = CASES[case]
    with RemoteProfiler(agents.addresses[kind], "pi4", access(agents)) as profiler:
        with pytest.raises(AuthError, match=cure) as caught:
            profiler.device_info()
        with pytest.raises(AuthError, match=cure):
            profiler.measure(Block("b", MeasureSpec(runs=1), (Model("m", b""),)))
    assert "\n" not in str(caught.value)
    assert "self-signed" not in str(caught.value)
    assert agents.token not in str(caught.value)


def test_a_host_with_a_token_does_not_speak_plain_text(agents: Agents) -> None:
    with (
        RemoteProfiler(agents.addresses["plain"], "pi4", good_token(agents)) as profiler,
        pytest.raises(AuthError, match="plain text, so nothing was sent"),
    ):
        profiler.device_info()


def test_an_absent_agent_is_absent_with_tls_as_well(agents: Agents) -> None:
    with (
        RemoteProfiler("127.0.0.1:1", "pi4", good_token(agents)) as profiler,
        pytest.raises(UnreachableError),
    ):
        profiler.device_info()


# The brake


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_are_slowed_more_and_more_but_not_for_ever() -> None:
    clock = Clock()
    brake = Brake(longest_s=4.0, clock=clock)
    assert [delay(brake, "a") for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4, 4]
    assert delay(brake, "b") == 0, "each address for itself"
    for _ in range(2000):
        assert delay(brake, "a") == 4
    clock.now = 299.0
    assert delay(brake, "a") == 4
    clock.now += 300.0
    assert delay(brake, "a") == 0, "forgotten"


def test_few_are_delayed_at_a_time() -> None:
    brake = Brake(most_delayed=2, clock=Clock())
    delay(brake, "a")
    with brake.failed("a") as first, brake.failed("a") as second, brake.failed("a") as third:
        assert first > 0
        assert second > 0
        assert third == 0, "no thread is left for it"
    with brake.failed("a") as fourth:
        assert fourth > 0


def test_not_every_address_is_remembered() -> None:
    brake = Brake(clock=Clock())
    for number in range(5000):
        delay(brake, str(number))
    assert len(brake._failures) <= 1024
    assert delay(brake, "4999") > 0
    assert delay(brake, "0") == 0


def delay(brake: Brake, address: str) -> float:
    with brake.failed(address) as delay_s:
        return delay_s
