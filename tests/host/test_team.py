"""A store that a team shares: campaigns in PostgreSQL, through the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_host.campaign.folder import RunFolder
from esm_host.cli.app import app
from esm_host.dataset import database
from esm_host.dataset.database import without_password
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from tests.host.fake_campaign import latency
from tests.postgres import PASSWORD, Server

SMALL = ["--resolution", "32", "--width-mult", "0.25", "--initial", "20", "--step", "10"]
SMALL += ["--bins", "2", "--block-size", "5", "--runs", "5", "--max-models", "30", "--quiet"]
SMALL += ["--predictor", "ridge", "--sampling", "balanced", "--verify", "0"]

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("undrawn")]


def esm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, the right exit code, and no traceback."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line


def listed(store: str) -> dict[str, dict[str, object]]:
    result = esm("campaigns", "list", "--store", store, "--json", "-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["schema_version"] == 1
    return {entry["name"]: entry for entry in data["campaigns"]}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ESM_STORE", raising=False)
    monkeypatch.setenv("ESM_SOURCES", str(tmp_path / "sources"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    """Every device is this one."""
    profiler = FakeProfiler(latency, noise=0.001)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    return profiler


@pytest.fixture
def mine(fake: FakeProfiler, shared_store: str) -> Path:
    """The folder of a finished campaign, on the machine that began it."""
    run = Path("mine/pi4-resnet")
    result = esm("profile", *SMALL, "--run", run, "--store", shared_store, "--target-accuracy", 1)
    assert result.exit_code == 0, result.output
    return run


def attached(store: str, run: str = "theirs/copy", name: str = "pi4-resnet") -> Path:
    """A folder of the same campaign on another machine."""
    result = esm("campaigns", "attach", name, run, "--store", store)
    assert result.exit_code == 0, result.output
    assert "esm-host report" in result.stdout
    return Path(run)


def measured_once(run: Path) -> int:
    """Asserts that every architecture of the plan was measured once; returns how many."""
    with closing(RunFolder(run).open_store()) as store:
        plan = store.plan()
        del plan[REFERENCE_ROUND]
        planned = [a.key for architectures in plan.values() for a in architectures]
        counts = Counter(m.model_id for m in store.measurements())
    assert [counts[key] for key in planned] == [1] * len(planned)
    return len(planned)


@contextmanager
def running(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A host that has the campaign, in a process of its own; killed in the end."""
    code = "import sys, pathlib; from esm_host.campaign.folder import RunFolder\n"
    code += (
        "with RunFolder(pathlib.Path(sys.argv[1])).locked(): print('has it', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(run)]
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"has it\n"
    try:
        yield host
    finally:
        host.kill()
        host.communicate()


# A campaign in a database


def test_its_folder_serves_as_one_with_its_own_store(mine: Path, shared_store: str) -> None:
    assert not (mine / "store.sqlite").exists()
    assert measured_once(mine) == 20
    frame = esm_host.load_run(mine).measurements()
    assert frame["predicted_ms"].notna().all()
    assert esm("predict", mine, "--sample", 3).exit_code == 0
    assert esm("report", mine, "--output", "report.html").exit_code == 0
    assert str(mine) in esm("sources", "list", "--runs", "mine").stdout
    again = esm("profile", "--run", mine, "--resume", "--target-accuracy", 100, "--quiet")
    assert again.exit_code == 3
    assert measured_once(mine) == 30


def test_nothing_depends_on_where_the_records_are(
    fake: FakeProfiler, shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same campaign by a file and by the environment's database gives the same numbers."""
    # Two, so that the second knows no more of its past than the first did.
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(latency))
    options = ["profile", *SMALL, "--target-accuracy", 100]
    assert esm(*options, "--run", "file").exit_code == 3
    monkeypatch.setenv("ESM_STORE", shared_store)
    assert esm(*options, "--run", "database").exit_code == 3
    one, other = (esm_host.load_run(name) for name in ("file", "database"))
    assert one.measurements().equals(other.measurements())
    rounds = one.rounds().drop(columns="training_s")
    assert rounds.equals(other.rounds().drop(columns="training_s"))
    assert sorted(listed(shared_store)) == ["database"]
    assert esm("profile", "--run", "file", "--resume").exit_code == 3  # where it was
    assert sorted(listed(shared_store)) == ["database"]


def test_a_teammate_goes_on_with_it(mine: Path, shared_store: str, fake: FakeProfiler) -> None:
    def same() -> bool:
        names = ("settings.json", "result.json", "predictions.csv")
        return all((theirs / name).read_bytes() == (mine / name).read_bytes() for name in names)

    assert esm("profile", "--run", mine, "--resume", "--predictor", "auto", "-q").exit_code == 0
    theirs = attached(shared_store)
    assert same()
    asked = ("--sample", 4, "--json", "-")
    predicted = json.loads(esm("predict", theirs, *asked).stdout)
    assert predicted == json.loads(esm("predict", mine, *asked).stdout)
    assert (theirs / "predictor.onnx").exists()
    assert esm("report", theirs).exit_code == 0
    more = ("profile", "--run", theirs, "--resume", "--target-accuracy", 100)
    assert esm(*more, "--predictor", "ridge", "--quiet").exit_code == 3
    assert measured_once(theirs) == 30
    # What they made of it comes with the next --resume, or before.
    assert not same()
    assert attached(shared_store, str(mine)) == mine
    assert same()
    assert not (mine / "predictor.onnx").exists()  # theirs has no such form
    assert esm(*more, "--max-models", 40, "--quiet").exit_code == 3
    assert esm("profile", "--run", mine, "--resume", "--quiet").exit_code == 3
    assert json.loads((mine / "result.json").read_text())["measured_models"] == 40
    assert measured_once(mine) == 40


def test_what_a_transfer_learnt_from_comes_along(
    mine: Path, shared_store: str, fake: FakeProfiler
) -> None:
    options = ["transfer", "--resolution", "32", "--width-mult", "0.25", "--samples", 6, "-q"]
    options += ["--held-out", 4, "--run", "mine/new", "--store", shared_store, "--source", mine]
    result = esm(*options)
    assert result.exit_code == 0, result.output
    theirs = attached(shared_store, "theirs/new", "new")
    asked = ("--sample", 4, "--json", "-")
    assert esm("predict", theirs, *asked).stdout == esm("predict", "mine/new", *asked).stdout


def test_from_python(fake: FakeProfiler, shared_store: str) -> None:
    settings = esm_host.Settings(
        "fake",
        resolution=32,
        width_mult=0.25,
        initial=10,
        max_models=10,
        bins=1,
        block_size=4,
        predictor="ridge",
        spec=esm_host.MeasureSpec(runs=5),
    )
    run = esm_host.profile(settings, "py", store=shared_store)
    assert not Path("py/store.sqlite").exists()
    copied = attached(shared_store, "copied", "py")
    again = esm_host.resume(copied, max_models=12)
    assert len(again.measurements()) == 12
    assert len(esm_host.resume(run).measurements()) == 12


# Lists


def test_campaigns_are_listed(mine: Path, postgres: Server, shared_store: str) -> None:
    postgres.sql("CREATE SCHEMA aunts; CREATE TABLE aunts.facts (name text)", shared_store)
    assert esm("profile", "--run", mine, "--resume", "--max-models", 31).exit_code == 0
    entry = listed(shared_store)["pi4-resnet"]
    assert entry.pop("last_measured_at") is not None
    assert entry == {
        "name": "pi4-resnet",
        "device": "local",
        "hostname": "fake",
        "space": "resnet, 32 px, width x0.25",
        "measured_models": 20,
        "running": False,
        "finished": True,
        "converged": True,
    }
    table = esm("campaigns", "list", "--store", shared_store).stdout.splitlines()
    assert len(table) == 2
    assert table[0].split()[:3] == ["campaign", "device", "space"]
    assert "local (fake)" in table[1]
    assert table[1].endswith("converged")
    with RunFolder(mine).locked():
        assert listed(shared_store)["pi4-resnet"]["running"] is True
        assert esm("campaigns", "list", "--store", shared_store).stdout.endswith("running\n")


def test_an_empty_store_and_none_at_all(shared_store: str) -> None:
    result = esm("campaigns", "list", "--store", shared_store)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "esm-host profile --store" in result.stderr
    refused(esm("campaigns", "list"), 2, "--store postgresql://", "ESM_STORE")


# Refusals


def test_a_name_is_one_campaigns(
    mine: Path, shared_store: str, postgres: Server, fake: FakeProfiler
) -> None:
    begin = ["profile", *SMALL, "--store", shared_store]
    refused(
        esm(*begin, "--run", "other/pi4-resnet"),
        2,
        "already has a campaign 'pi4-resnet'",
        "another --run",
        "esm-host campaigns attach pi4-resnet",
    )
    assert not Path("other").exists()
    refused(esm(*begin, "--run", mine), 2, "holds a campaign", "--resume")
    for name in ("a b", "public", "pg_x", ".hidden", "n" * 64):
        refused(esm(*begin, "--run", f"other/{name}"), 2, "cannot be the name", "--run")
    attach = ["campaigns", "attach", "--store", shared_store]
    refused(
        esm(*attach, "pi4-resnt"), 2, "unknown campaign 'pi4-resnt'", "did you mean 'pi4-resnet'"
    )
    assert esm(*begin, "--run", "mine/second", "--target-accuracy", 1).exit_code == 0
    refused(esm(*attach, "second", mine), 2, "holds another campaign", "another folder")
    blocks = len(fake.blocks)
    postgres.sql(
        'DROP SCHEMA "pi4-resnet" CASCADE; ALTER SCHEMA "second" RENAME TO "pi4-resnet"',
        shared_store,
    )
    again = esm("profile", "--run", mine, "--resume", "--max-models", 40)
    refused(again, 2, "another campaign of the same name", "another --run")
    assert len(fake.blocks) == blocks


def test_a_resumed_campaign_stays_where_it_is(
    mine: Path, shared_store: str, postgres: Server, fake: FakeProfiler
) -> None:
    elsewhere = shared_store.replace("/shared?", "/postgres?")
    resume = ["profile", "--run", mine, "--resume"]
    refused(esm(*resume, "--store", elsewhere), 2, "has its store in", "omit --store")
    assert esm(*resume, "--store", shared_store).exit_code == 0
    assert esm("profile", *SMALL, "--run", "own", "--target-accuracy", 1).exit_code == 0
    result = esm("profile", "--run", "own", "--resume", "--store", shared_store)
    refused(result, 2, "own/store.sqlite", "omit --store")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("lab", ["--store is not a URL", "give postgresql://"]),
        ("postgresql://db:port/esm", ["--store is not a URL"]),
        ("mysql://ada@db/esm", ["of a PostgreSQL database", "give postgresql://"]),
        ("postgresql://ada@db", ["give postgresql://USER@HOST/DATABASE"]),
        ("postgresql://db/esm?password=s3cret", ["password", "~/.pgpass"]),
    ],
)
def test_what_is_no_url_of_a_database(fake: FakeProfiler, url: str, words: list[str]) -> None:
    for command in (["profile", *SMALL, "--run", "r"], ["campaigns", "list"]):
        result = esm(*command, "--store", url)
        refused(result, 2, *words)
        assert "s3cret" not in result.output
    assert not Path("r").exists()


def test_a_database_that_cannot_be_used(fake: FakeProfiler, shared_store: str) -> None:
    def tried(url: str, *words: str) -> None:
        refused(esm("profile", *SMALL, "--run", "r", "--store", url), 1, *words)
        assert not Path("r").exists()

    tried("postgresql://ada@127.0.0.1:1/esm", "Connection refused", "its server runs")
    tried("postgresql://ada@no.invalid/esm", "no.invalid", "is reachable")
    tried(
        shared_store.replace("/shared?", "/nothing?"),
        'database "nothing" does not exist',
        "createdb",
    )
    tried(
        shared_store.replace("//admin@", "//nobody@"), 'role "nobody" does not exist', "USER@HOST"
    )
    assert fake.blocks == []


def test_without_the_driver_it_is_named(
    fake: FakeProfiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = esm("profile", *SMALL, "--run", "r", "--store", "postgresql://ada@db/esm")
    refused(result, 1, "pip install '.[postgres]'")
    assert not Path("r").exists()


def test_a_team_set_up_as_the_guide_says(fake: FakeProfiler, postgres: Server) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "team.md").read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", guide, re.M | re.S)
    postgres.sql(sql)
    member = sql.partition("DATABASE esm FROM PUBLIC;")[2]
    postgres.sql(member.replace("ada", "bob") + "CREATE ROLE eve LOGIN;")
    url = postgres.url("esm")
    ada, bob, eve = (url.replace("//admin@", f"//{name}@") for name in ("ada", "bob", "eve"))
    begin = ["profile", *SMALL, "--target-accuracy", 1]
    assert esm(*begin, "--run", "ada/pi4", "--store", ada).exit_code == 0
    theirs = attached(bob, "bob/pi4", "pi4")
    more = ["--resume", "--target-accuracy", 100, "--quiet"]
    with running(Path("ada/pi4")):
        refused(esm("profile", "--run", theirs, *more), 75, "esm-host on", "is running")
    assert esm("profile", "--run", theirs, *more).exit_code == 3
    assert measured_once(Path("ada/pi4")) == 30
    words = ("permission denied", "GRANT CONNECT", "docs/team.md")
    refused(esm("campaigns", "list", "--store", eve), 1, *words)
    # One whom the database knows, but not the campaign.
    postgres.sql("GRANT CONNECT ON DATABASE esm TO eve")
    result = esm("campaigns", "list", "--store", eve)
    assert "warning: campaign 'pi4'" in result.stderr
    refused(esm("campaigns", "attach", "pi4", "eve", "--store", eve), 1, "permission denied")
    refused(
        esm(*begin, "--run", "own", "--store", eve),
        1,
        "not permit you to begin a campaign",
        "GRANT CREATE",
    )
    assert not Path("eve").exists()
    assert not Path("own").exists()


# Passwords


def test_a_password_serves_but_is_never_written(
    fake: FakeProfiler, postgres: Server, shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = postgres.by_tcp(shared_store)
    secret = plain.replace("@", f":{PASSWORD.replace('/', '%2F')}@")
    begin = ["profile", *SMALL, "--target-accuracy", 1]
    refused(esm(*begin, "--run", "a", "--store", plain), 1, "password", "~/.pgpass or PGPASSWORD")
    wrong = plain.replace("@", ":wrong@")
    result = esm(*begin, "--run", "a", "--store", wrong)
    refused(result, 1, "password authentication failed", "~/.pgpass")
    assert esm(*begin, "--run", "a", "--store", secret).exit_code == 0
    for path in Path("a").iterdir():
        assert b"s3cret" not in path.read_bytes(), path
    assert json.loads(Path("a/store.json").read_text())["store"] == without_password(plain)

    # Another program, which was not given it.
    monkeypatch.setattr(database, "_passwords", {})
    refused(esm("report", "a"), 1, "~/.pgpass or PGPASSWORD")
    monkeypatch.setenv("ESM_STORE", secret)
    assert esm("report", "a").exit_code == 0
    monkeypatch.delenv("ESM_STORE")
    monkeypatch.setattr(database, "_passwords", {})
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert esm("report", "a").exit_code == 0


# One host at a time, and none that dies


def test_two_hosts_do_not_run_one_campaign(
    mine: Path, shared_store: str, fake: FakeProfiler
) -> None:
    theirs = attached(shared_store)
    second = attached(shared_store, "theirs/second")
    resume = ["profile", "--run", theirs, "--resume", "--max-models", 40, "--quiet"]
    resume += ["--target-accuracy", 100]
    blocks = len(fake.blocks)
    with running(mine) as host:
        refused(esm(*resume), 75, "esm-host on", "is running campaign 'pi4-resnet'", "wait")
        assert esm("predict", second, "--sample", 1).exit_code == 0  # reading is free
        assert esm("report", second).exit_code == 0
        assert len(fake.blocks) == blocks
        host.kill()
        host.wait()
        deadline = time.monotonic() + 10
        while (result := esm(*resume)).exit_code == 75 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert result.exit_code == 3, result.output
    assert measured_once(theirs) == 40


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_database_that_goes_away_costs_no_more_than_a_block(
    fake: FakeProfiler,
    postgres: Server,
    shared_store: str,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    answer = fake.answer

    def answer_late(*arguments):
        if len(fake.blocks) == at:
            postgres.stop()
        return answer(*arguments)

    begin = ["profile", *SMALL, "--run", "r", "--store", shared_store, "--target-accuracy", 100]
    with monkeypatch.context() as patch:
        patch.setattr(fake, "answer", answer_late)
        result = esm(*begin)
    try:
        refused(result, 1, "cannot be used", "its server runs", "then continue with --resume")
        resume = ["profile", "--run", "r", "--resume", "--quiet"]
        refused(esm(*resume), 1, "cannot be used", "its server runs")
    finally:
        postgres.start()
    assert esm(*resume).exit_code == 3
    assert measured_once(Path("r")) == 30
    assert len(fake.blocks) == 7  # the one that could not be stored again


@pytest.mark.faults
def test_a_host_that_is_killed_loses_nothing(shared_store: str) -> None:
    """Through a real agent; wherever it dies, another machine goes on."""
    loud = [word for word in SMALL if word != "--quiet"]
    begin = ["profile", *loud, "--run", "r/killed", "--store", shared_store]
    begin += ["--target-accuracy", "100", "--max-remeasurements", "0"]
    command = [sys.executable, "-c", "from esm_host.cli import main; main()", *begin]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as host:
        assert host.stderr is not None
        said = next((line for line in host.stderr if " models measured, " in line), None)
        host.kill()
    assert said is not None
    (campaign,) = listed(shared_store).values()
    assert campaign["finished"] is False
    assert esm("campaigns", "list", "--store", shared_store).stdout.endswith("unfinished\n")
    shutil.rmtree("r/killed")
    theirs = attached(shared_store, name="killed")
    resumed = esm("profile", "--run", theirs, "--resume", "--quiet")
    assert resumed.exit_code == 3, resumed.output
    assert measured_once(theirs) == 30
    assert listed(shared_store)["killed"]["measured_models"] == 30


def test_a_host_that_is_killed_before_it_has_measured(
    fake: FakeProfiler, shared_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder says where it was to go on, and the store does not list it as begun."""

    def killed(self: RunFolder, make: bool = False) -> Store:
        raise KeyboardInterrupt

    begin = ["profile", *SMALL, "--run", "r", "--store", shared_store, "--target-accuracy", 1]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "open_store", killed)
        assert esm(*begin).exit_code == 130
    assert listed(shared_store) == {}
    assert esm("profile", "--run", "r", "--resume", "--quiet").exit_code == 0
    assert listed(shared_store)["r"]["measured_models"] == 20
    assert not Path("r/store.sqlite").exists()
