"""A search that is killed at any moment goes on, to the same front."""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from esm_host.parallel import parallel
from esm_host.search.settings import SearchSettings
from esm_host.workflows.search import run_search
from tests.host.cluster import Cluster

pytestmark = pytest.mark.faults

PROFILE = ["profile", "--space", "resnet", "--resolution", "32", "--width-mult", "0.25"]
PROFILE += ["--initial", "30", "--max-models", "30", "--bins", "2", "--runs", "5"]
PROFILE += ["--sampling", "balanced", "--verify", "0"]
OPTIONS = ["--measure", "24", "--batch", "6", "--max-latency", "3", "-q"]


def program(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.search_program", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*arguments: object) -> None:
    process = program(*arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode in (0, 3), said


def test_killed_again_and_again_it_comes_to_the_same_front(tmp_path: Path) -> None:
    campaign = tmp_path / "run"
    finished(*PROFILE, "--run", campaign, "-q")
    quiet = shutil.copytree(campaign, tmp_path / "quiet")
    began = time.monotonic()
    finished("search", quiet, *OPTIONS)
    takes_s = time.monotonic() - began
    rng = random.Random(0)
    kills = 0
    folder = campaign / "search"
    for _ in range(12):
        started = (folder / "settings.json").exists()
        process = program("search", campaign, *(["--resume", "-q"] if started else OPTIONS))
        try:
            _, said = process.communicate(timeout=rng.uniform(0.2, 0.5) * takes_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode in (0, 3), said
        break
    else:
        # Each time it got a little further; undisturbed it comes to its end.
        finished("search", campaign, "--resume", "-q")
    print(f"killed {kills} times")
    assert kills
    one, two = (
        json.loads((each / "search" / "front.json").read_text()) for each in (quiet, campaign)
    )
    assert one["results"] == two["results"]
    assert one["measured"] == two["measured"]
    rounds = [[row["key"] for row in each["chosen"]] for each in one["rounds"]]
    assert rounds == [[row["key"] for row in each["chosen"]] for each in two["rounds"]]


def test_a_worker_is_killed_and_the_front_is_the_same(tmp_path: Path) -> None:
    campaign = tmp_path / "run"
    finished(*PROFILE, "--run", campaign, "-q")
    function = tmp_path / "own.py"
    function.write_text(
        "import time\n"
        "def accuracy(architectures):\n"
        "    time.sleep(0.002 * len(architectures))\n"
        "    return [sum(map(len, a.units)) + len(set(a.units[0])) / 10 for a in architectures]\n"
    )
    settings = SearchSettings((str(campaign),), (f"accuracy={function}:accuracy",), measure=0)
    alone = run_search(settings, tmp_path / "alone")
    cluster = Cluster(tmp_path, workers=2)
    try:
        killer = threading.Timer(3, cluster.workers[0].kill)
        killer.start()
        with parallel(cluster.spec):
            together = run_search(settings, tmp_path / "together")
        killer.join()
        assert cluster.workers[0].wait(10) == -9
        assert cluster.workers[1].poll() is None
    finally:
        cluster.close()
    assert together.result["results"] == alone.result["results"]
