"""The agent's memory of its reference models: a file shared with others, broken, or full."""

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from esm_agent.measure import history
from esm_agent.measure.history import KEPT_S, MOMENT_S, HistoryFile, conditions
from esm_agent.measure.references import reference_models
from esm_protos.messages import MeasureSpec
from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.session_settings import SessionSettings
from tests.agent.fake_roots import laptop, pi4

HERE = {"runtime": "onnxruntime 1.23", "threads": "1"}
NAMES = ("arithmetic", "beyond")
TAKEN = {"arithmetic": 1e6, "beyond": 9e6}


class Clock:
    def __init__(self, now: float = 1.7e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> HistoryFile:
    return HistoryFile(tmp_path / "state" / "history.jsonl", clock)


def add_moments(file: HistoryFile, clock: Clock, count: int, ms: float = 1.0) -> None:
    for _ in range(count):
        file.add(HERE, {"arithmetic": 1e6 * ms, "beyond": 9e6 * ms})
        clock.now += MOMENT_S


def moments(file: HistoryFile, here: dict[str, str] = HERE) -> int:
    usual = file.usual(here, NAMES)
    return 0 if usual is None else usual.moments


def test_what_is_added_is_usual(file: HistoryFile, clock: Clock) -> None:
    assert file.usual(HERE, NAMES) is None
    for ms in (1.0, 1.1, 1.3):
        add_moments(file, clock, 1, ms)
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert usual.references == NAMES
    assert usual.latency_ns == pytest.approx([1.1e6, 9.9e6])
    assert (usual.moments, usual.span_s) == (3, 2 * MOMENT_S)


def test_a_busy_moment_counts_once(file: HistoryFile, clock: Clock) -> None:
    clock.now -= clock.now % MOMENT_S
    for _ in range(20):
        file.add(HERE, {"arithmetic": 5e6, "beyond": 45e6})
        clock.now += 1
    clock.now += MOMENT_S
    add_moments(file, clock, 2)
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert usual.moments == 3
    assert usual.latency_ns == pytest.approx([1e6, 9e6])


@pytest.mark.parametrize("taken", [{}, {"beyond": 9e6}, {"arithmetic": 1e6}])
def test_blocks_without_a_reference_take_nothing_from_other_moments(
    file: HistoryFile, clock: Clock, taken: dict[str, float]
) -> None:
    """Blocks that are too short to time it, many of them in one moment."""
    add_moments(file, clock, 20)
    for _ in range(41):
        file.add(HERE, taken)
        clock.now += 1
    # As an agent of an older version writes it.
    line = {
        "format": history.FORMAT,
        "at_unix_s": clock.now,
        "conditions": HERE,
        "latency_ns": taken,
    }
    file.path.write_text(file.path.read_text() + f"\n{json.dumps(line)}" * 41)
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert (usual.references, usual.moments) == (NAMES, 20)
    assert file.records()[0].usual is not None


def test_a_block_without_references_writes_nothing(file: HistoryFile) -> None:
    file.add(HERE, {})
    assert not file.path.exists()


def test_is_private(file: HistoryFile, clock: Clock) -> None:
    before = os.umask(0)
    try:
        add_moments(file, clock, 1)
    finally:
        os.umask(before)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\n\n\n",
        b"{",
        b'null\n[]\n3\n"text"\n',
        b"\xff\xfe\x00\n",
        b"[" * 100_000,
        b'{"format": 1}\n',
        b'{"format": 99, "at_unix_s": 1.7e9, "conditions": {}, "latency_ns": {}}',
        *(
            json.dumps(
                {"format": history.FORMAT, "at_unix_s": at, "conditions": own, "latency_ns": taken}
            ).encode()
            for at, own, taken in [
                (1.7e9, HERE, {"arithmetic": "fast", "beyond": 1}),
                (1.7e9, HERE, {"arithmetic": -1.0, "beyond": 1}),
                (1.7e9, HERE, {"arithmetic": float("nan"), "beyond": 1}),
                (1.7e9, HERE, {"arithmetic": 10**400, "beyond": 1}),
                (1.7e9, HERE, {"arithmetic": 5e-324, "beyond": 1}),
                (1.7e9, HERE, {"arithmetic": 9e17, "beyond": 1}),
                (1.7e9, HERE, [1, 2]),
                (1.7e9, None, TAKEN),
                (float("inf"), HERE, TAKEN),
                (float("nan"), HERE, TAKEN),
                ("today", HERE, TAKEN),
                (1.7e9, HERE, {}),
            ]
        ),
    ],
)
def test_lines_that_make_no_sense_are_skipped(
    file: HistoryFile, clock: Clock, garbage: bytes
) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(garbage)  # the last line is not ended
    assert moments(file) == 0
    add_moments(file, clock, 2)
    assert moments(file) == 2
    assert [each.usual is None for each in file.records()][-1:] == [False]


def test_after_ninety_days_a_moment_is_forgotten(file: HistoryFile, clock: Clock) -> None:
    add_moments(file, clock, 3)
    clock.now += KEPT_S - 2.5 * MOMENT_S
    assert moments(file) == 2
    clock.now += KEPT_S
    assert moments(file) == 0


def test_a_clock_that_jumps_loses_no_block(file: HistoryFile, clock: Clock) -> None:
    add_moments(file, clock, 3)
    right = clock.now
    clock.now = 100.0  # a board before it has asked the network for the time
    add_moments(file, clock, 1)
    assert moments(file) == 1
    clock.now = right + 10 * KEPT_S
    add_moments(file, clock, 1)
    clock.now = right - 3600
    assert moments(file) == 3, "times that are far away are those of a wrong clock"
    add_moments(file, clock, 1)
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert usual.moments == 4
    assert usual.span_s > 0


@pytest.mark.parametrize(
    "other",
    [
        {**HERE, "runtime": "onnxruntime 1.24"},
        {**HERE, "threads": "2"},
        {**HERE, "governor": "powersave"},
        {"runtime": HERE["runtime"]},
    ],
)
def test_conditions_are_kept_apart(file: HistoryFile, clock: Clock, other: dict[str, str]) -> None:
    add_moments(file, clock, 2)
    file.add(other, TAKEN)
    assert (moments(file), moments(file, other)) == (2, 1)
    assert [each.conditions for each in file.records()] == [HERE, other]


def test_settings_of_block_and_device_make_conditions(tmp_path: Path) -> None:
    roots = [tmp_path / "pi", tmp_path / "laptop"]
    pi4(roots[0])
    laptop(roots[1])
    spec, cpu = MeasureSpec(), ProviderInfo("cpu")
    options = (ProviderOption("tf32", "bool", "0"), ProviderOption("size", "int", "4"))
    cuda = {name: ProviderInfo("cuda", "", options, {"gpu": name}) for name in "AB"}
    tf32 = MeasureSpec(provider="cuda", provider_options={"tf32": "1"})
    found = [
        conditions("ort 1", spec, cpu, root=roots[0]),
        conditions("ort 1", spec, cpu, root=roots[1]),
        conditions("ort 2", spec, cpu, root=roots[0]),
        conditions("ort 1", MeasureSpec(threads=4), cpu, root=roots[0]),
        conditions("ort 1", MeasureSpec(provider="cuda"), cuda["A"], root=roots[0]),
        conditions("ort 1", MeasureSpec(provider="cuda"), cuda["B"], root=roots[0]),
        conditions("ort 1", tf32, cuda["A"], root=roots[0]),
        conditions("ort 1", spec, cpu, cpus=(0, 97), root=roots[0]),
    ]
    assert (found[6]["gpu"], found[6]["settings"]) == ("A", "tf32"), "as older versions wrote it"
    stated = replace(tf32, provider_options={"tf32": "1", "size": "4"})
    assert conditions("ort 1", stated, cuda["A"], root=roots[0]) == found[6]
    governor = roots[0] / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.write_text("userspace\n")
    found.append(conditions("ort 1", spec, cpu, root=roots[0]))
    assert len({json.dumps(each) for each in found}) == len(found)
    again = conditions("ort 1", MeasureSpec(runs=7, seed=3, precision=0.1), cpu, root=roots[0])
    assert again == found[-1], "how long a block takes is no condition"


def test_settings_of_sessions_make_conditions() -> None:
    cpu = ProviderInfo("cpu")
    sessions = [
        SessionSettings(),
        SessionSettings("basic"),
        SessionSettings(execution_mode="parallel"),
        SessionSettings(execution_mode="parallel", inter_op=2),
        SessionSettings(session_options={"session.disable_prepacking": "1"}),
    ]
    found = [conditions("ort 1", MeasureSpec(session=each), cpu)["settings"] for each in sessions]
    assert found == [
        "",
        "session:opt_level=basic",
        "session:execution_mode=parallel",
        "session:execution_mode=parallel session:inter_op=2",
        "session:session.disable_prepacking=1",
    ], "the first as older versions wrote it"
    fixed = MeasureSpec(session=SessionSettings(free_dims={"N": 8}))
    assert conditions("ort 1", fixed, cpu)["settings"] == "", "reference models have none"
    for model in reference_models():
        inputs = onnx.load(model.path, load_external_data=False).graph.input
        dims = [dim for given in inputs for dim in given.type.tensor_type.shape.dim]
        assert dims
        assert not any(dim.dim_param for dim in dims)


def _write(path: Path, number: int, lines: int) -> None:
    file = HistoryFile(path)
    for _ in range(lines):
        file.add({"agent": str(number)}, TAKEN)


def _count(path: Path) -> list[int]:
    owners = [json.loads(line)["conditions"]["agent"] for line in path.open() if line.strip()]
    return [owners.count(str(number)) for number in range(2)]


def test_two_agents_write_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_LOCK_S", 60.0)  # the machine may have much else to do
    path = tmp_path / "history.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, n, 200)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert _count(path) == [200, 200]


def test_a_file_that_is_replaced_meanwhile_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another agent shortens it between opening and locking."""
    path = tmp_path / "history.jsonl"
    _write(path, 0, 1)
    real, done = history.lock, []

    def lock_late(file, wait: bool) -> bool:
        if not done:
            done.append(True)
            draft = tmp_path / "draft"
            draft.write_bytes(path.read_bytes())
            draft.replace(path)
        return real(file, wait)

    monkeypatch.setattr(history, "lock", lock_late)
    _write(path, 1, 1)
    assert _count(path) == [1, 1]


def test_a_large_file_keeps_a_line_for_each_of_the_newest_moments(
    file: HistoryFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST_BYTES", 20_000)
    for number in range(2_000):
        file.add(HERE, {"arithmetic": 1e6 + number, "beyond": 9e6})
        clock.now += 10
    assert file.path.stat().st_size <= 21_000
    assert file.path.stat().st_mode & 0o777 == 0o600
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert usual.moments >= 30, "a busy time does not drive out what came before"
    assert usual.latency_ns[0] > 1e6 + 500


def test_a_file_that_is_shortened_keeps_whole_lines(
    file: HistoryFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST_BYTES", 20_000)
    clock.now -= clock.now % MOMENT_S
    for number in range(400):
        file.add(HERE, TAKEN if number % 20 == 7 else {"arithmetic": 1e6})
        clock.now += MOMENT_S / 20
    assert file.path.stat().st_size <= 21_000
    usual = file.usual(HERE, NAMES)
    assert usual is not None
    assert (usual.references, usual.moments) == (NAMES, 20)


def test_many_moments_leave_the_newest(
    file: HistoryFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST_BYTES", 20_000)
    add_moments(file, clock, 300)
    last = clock.now - MOMENT_S
    assert file.path.stat().st_size <= 21_000
    kept = [json.loads(line)["at_unix_s"] for line in file.path.open() if line.strip()]
    assert max(kept) == pytest.approx(last, abs=0.1)
    assert 20 < moments(file) < 300


def test_a_wrong_clock_forgets_nothing(
    file: HistoryFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block at 1970, as of a board before it has asked for the time, when the file is full."""
    add_moments(file, clock, 100)
    monkeypatch.setattr(history, "_MOST_BYTES", file.path.stat().st_size)
    right, clock.now = clock.now, 100.0
    add_moments(file, clock, 1)
    clock.now = right
    assert moments(file) > 30
    monkeypatch.setattr(history, "_MOST_BYTES", 1_000)
    add_moments(file, clock, 1)
    kept = [json.loads(line)["at_unix_s"] for line in file.path.open() if line.strip()]
    assert min(kept) > 1e9, "a right clock forgets what a wrong one told"


def test_lines_of_a_newer_agent_stay(
    file: HistoryFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = [{"format": 99, "at_unix_s": clock.now, "number": number} for number in range(100)]
    file.path.parent.mkdir()
    file.path.write_text("\n".join(map(json.dumps, newer)))
    add_moments(file, clock, 200)
    monkeypatch.setattr(history, "_MOST_BYTES", 20_000)
    add_moments(file, clock, 1)
    assert file.path.stat().st_size < 20_000
    lines = [json.loads(line) for line in file.path.open() if line.strip()]
    assert [line["number"] for line in lines if line["format"] == 99][-20:] == list(range(80, 100))
    assert moments(file) > 20


def test_who_keeps_the_file_locked_holds_no_block_up(
    file: HistoryFile,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(history, "_LOCK_S", 0.1, raising=False)
    add_moments(file, clock, 1)
    with file.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=file.add, args=(HERE, TAKEN), daemon=True)
        writer.start()
        writer.join(20)
        held_up = writer.is_alive()
        fcntl.flock(other, fcntl.LOCK_UN)
    writer.join(20)
    assert not held_up
    assert "another program holds its lock" in caplog.text
    assert moments(file) == 1
    file.add(HERE, TAKEN)
    assert moments(file) == 2


def test_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    program = (
        "import sys; from pathlib import Path; from esm_agent.measure.history import HistoryFile\n"
        "file = HistoryFile(Path(sys.argv[1])); file.add({}, {'a': 1e6})\n"
        "assert file.usual({}, ['a']) is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "no history is kept in" in done.stderr
    shown = esm_agent("history", "--history", path)
    assert shown.returncode == 2
    assert shown.stderr == f"error: cannot read {path}: not a regular file\n"


@pytest.mark.parametrize(
    "where", ["/dev/full", "/proc/nowhere/history.jsonl", "/dev/null/file", "/"]
)
def test_a_file_that_cannot_be_written_costs_no_block(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = HistoryFile(Path(where))
    for _ in range(3):
        file.add(HERE, TAKEN)
    assert len(caplog.records) == 1, "said once"
    assert where in caplog.text
    assert file.usual(HERE, NAMES) is None


def test_systemd_and_home_say_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history.history_file() == tmp_path / ".local/state/esm-agent/history.jsonl"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/esm-agent:/var/lib/other")
    assert history.history_file() == Path("/var/lib/esm-agent/history.jsonl")


def test_a_user_without_a_home_folder_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OSError, match="no home folder"):
        history.history_file()


def esm_agent(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esm_agent.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_shows_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    missing = esm_agent("history", "--history", path)
    assert missing.returncode == 2
    assert missing.stderr == f"error: {path} does not exist: there is no history yet\n"
    HistoryFile(path).add({**HERE, "odd": "\x1b[2J"}, TAKEN)
    shown = esm_agent("history", "--history", path)
    assert shown.returncode == 0, shown.stderr
    for words in (
        "onnxruntime 1.23",
        "threads 1",
        "1 moment since 20",
        "arithmetic",
        "9.0000 ms",
        "SD unknown",
    ):
        assert words in shown.stdout
    assert "\x1b" not in shown.stdout
    (own,) = json.loads(esm_agent("history", "--history", path, "--json", "-").stdout)["remembered"]
    assert own["usual"]["latency_ms"] == pytest.approx([1, 9])
    assert own["conditions"]["threads"] == "1"
    assert esm_agent("history", "--history", path, "--forget", "--json", "-").returncode == 2
    assert esm_agent("history", "--history", path, "--forget").returncode == 0
    assert not path.exists()
    assert np.array(own["usual"]["spread"]).shape == (2, 2)
