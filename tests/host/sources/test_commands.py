"""``esm-host import`` and ``esm-host sources`` as users meet them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from typer.testing import CliRunner, Result

from esm_host.cli.app import app
from esm_host.dataset.benchmarks import read_benchmark, write_table
from esm_host.sources.folder import folder, tables
from esm_host.sources.registry import keep
from esm_models.spaces import load_space
from tests.host.sources.conftest import PUBLIC, draw, made_table

CELL = "|none~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|nor_conv_3x3~1|avg_pool_3x3~2|"
OTHER = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|"


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments: object) -> str:
    result = esm_host(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, nothing else, no traceback."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.csv"
    frame = pd.DataFrame({"cell": [CELL, OTHER], "mean_us": [1500, 250], "p99": [2.0, np.nan]})
    frame.to_csv(path, index=False)
    return path


NAMED = ("--architecture", "cell", "--latency", "mean_us=orin", "--unit", "us")


# Importing


def test_a_csv_is_kept_under_its_name(board: Path) -> None:
    result = esm_host("import", board, *NAMED)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "board: 2 architectures of nasbench201",
        "device  latencies  missing  median_ms",
        "orin            2        0     0.8750",
    ]
    assert f"saved in {folder()}; esm-host sources correlation" in result.stderr
    assert read_benchmark(folder() / "board.parquet").latency_ms["orin"].tolist() == [1.5, 0.25]


def test_several_columns_a_name_and_json(board: Path) -> None:
    named = ("--architecture", "cell", "--latency", "p99=slow", "--latency", "mean_us=orin")
    data = json.loads(works("import", board, *named, "--name", "mine", "--json", "-"))
    assert data["schema_version"] == 1
    slow, orin = data["sources"]
    assert slow == {
        "name": "mine/slow",
        "kind": "imported",
        "space": "nasbench201",
        "device": "slow",
        "architectures": 1,
        "missing": 1,
        "metric": "latency",
        "unit": "ms",
    }
    assert orin["name"] == "mine/orin"
    assert tables() == ["mine"]


def test_energies_keep_their_metric_and_unit(board: Path) -> None:
    named = ("--architecture", "cell", "--latency", "mean_us=orin", "--unit", "us")
    out = works("import", board, *named, "--energy", "p99=orin", "--energy-unit", "J")
    assert out.splitlines()[1:] == [
        "device  latencies  missing  median_ms",
        "orin            2        0     0.8750",
        "device  energies  missing  median_mj",
        "orin           1        1      2,000",
    ]
    data = json.loads(works("sources", "list", "--json", "-"))
    assert [(entry["name"], entry["metric"], entry["unit"]) for entry in data["sources"]] == [
        ("board/orin", "latency", "ms"),
        ("board/orin:energy", "energy", "mJ"),
    ]
    assert "imported, energy in mJ" in works("sources", "list").splitlines()[2]
    assert read_benchmark(folder() / "board.parquet").energy_mj["orin"][0] == 2000


def test_a_taken_name_is_replaced_only_when_asked(board: Path) -> None:
    works("import", board, *NAMED)
    again = esm_host("import", board, *NAMED)
    assert_refused(again, 2, "there is already a source 'board'", "--replace", "--name")
    works("import", board, *NAMED, "--replace")
    works("import", board, *NAMED, "--name", "second")
    assert tables() == ["board", "second"]


def test_networks_of_a_space_with_other_settings(tmp_path: Path) -> None:
    space = load_space("resnet", resolution=64, width_mult=0.25)
    architectures = space.decode(draw(space, 25))
    texts = [json.dumps(architecture.to_json()) for architecture in architectures]
    pd.DataFrame({"architecture": texts, "lat_ms_pi": range(1, 26)}).to_csv("pi.csv", index=False)
    out = works("import", "pi.csv", "--resolution", 64, "--width-mult", 0.25)
    assert "25 architectures of resnet, 64 px, width x0.25" in out
    assert "resnet, 64 px, width x0.25" in works("sources", "list", "--space", "resnet")


def test_a_folder_of_help_and_a_pickle_of_hw_nas_bench_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "h" / "latency").mkdir(parents=True)
    torch.save([[8] * 22, [0] * 22], tmp_path / "h" / "arch.pt")
    torch.save([1.0, 2.0], tmp_path / "h" / "latency" / "fpga.pt")
    torch.save([1.0], tmp_path / "h" / "latency" / "short.pt")
    result = esm_host("import", "h")
    assert result.stdout.splitlines()[0] == "help-fbnet: 2 architectures of fbnet"
    assert "warning: short has 1 latencies for 2 architectures: left out" in result.stderr
    entry = {"config": [{"arch_str": CELL}, {"arch_str": OTHER}], "pixel3_latency": [3.5, 4.5]}
    content = {"nasbench201": {"cifar10": entry, "cifar100": entry}}
    Path("hw.pickle").write_bytes(pickle.dumps(content))
    Path("hw.bin").write_bytes(pickle.dumps(content))
    works("import", "hw.pickle")
    works("import", "hw.bin", "--format", "hw-nas-bench", "--name", "mine")
    expected = ["help-fbnet", "hw-nas-bench-cifar10", "hw-nas-bench-cifar100"]
    assert tables() == [*expected, "mine-cifar10", "mine-cifar100"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.csv"], 2, ["there is no none.csv"]),
        (["board.csv"], 2, ["no column lat_ms_DEVICE", "--latency COLUMN=DEVICE", "'mean_us'"]),
        (["board.csv", "--latency", "mean_us=o"], 1, ["no architectures", "--architecture"]),
        (
            ["board.csv", "--latency", "mean=o"],
            2,
            ["unknown column 'mean'", "did you mean 'mean_us'"],
        ),
        (["board.csv", "--latency", "mean_us"], 2, ["--latency 'mean_us'", "COLUMN=DEVICE"]),
        (["board.csv", "--latency", "a=o", "--latency", "b=o"], 2, ["'b=o'", "each device once"]),
        (["board.csv", *NAMED[:-1], "h"], 2, ["unknown unit 'h'", "s, ms, us, ns"]),
        (["board.csv", "--energy", "p99"], 2, ["--energy 'p99'", "COLUMN=DEVICE"]),
        (["board.csv", "--energy-unit", "J"], 2, ["--energy-unit J", "--energy COLUMN=DEVICE"]),
        (
            ["board.csv", "--energy", "p99=o", "--format", "help"],
            2,
            ["--energy is an option of --format columns"],
        ),
        (["board.csv", *NAMED[:2], "--latency", "cell=o"], 1, ["'cell'", "must hold numbers"]),
        (["board.csv", *NAMED, "--name", "a/b"], 2, ["'a/b'", "letters, digits"]),
        (["board.csv", *NAMED, "--resolution", 8], 2, ["--resolution 8 is too small"]),
        (["board.csv", *NAMED, "--json", "no/x.json"], 2, ["--json no/x.json", "no folder"]),
        (
            ["board.csv", *NAMED, "--format", "help"],
            2,
            ["--architecture is an option of --format columns"],
        ),
        (["board.csv", "--format", "help"], 2, ["no latency/DEVICE.pt"]),
        (["board.csv", "--format", "hw-nas-bench"], 1, ["not a file of HW-NAS-Bench"]),
        (["board.csv", "--format", "hwnas"], 2, ["--format", "hw-nas-bench"]),
        (["x.txt"], 2, ["x.txt has an unknown format", "columns, help, hw-nas-bench"]),
        (["x.parquet"], 1, ["x.parquet cannot be read"]),
        (["x.pickle"], 1, ["not a file of HW-NAS-Bench"]),
        (["."], 2, ["no folder 'latency'", "HELP"]),
        (["campaign"], 2, ["campaign is a campaign", "use its folder as a source"]),
        ([], 2, ["missing argument"]),
    ],
)
def test_wrong_imports_are_one_line_and_keep_nothing(
    board: Path, campaign: Path, arguments: list[object], code: int, words: list[str]
) -> None:
    for name in ("x.txt", "x.parquet", "x.pickle"):
        Path(name).write_bytes(b"nothing of ours")
    shutil.copytree(campaign, "campaign")
    assert_refused(esm_host("import", *arguments), code, *words)
    assert tables() == []


def test_the_public_table_of_fbnet() -> None:
    path = PUBLIC / "fbnet.parquet"
    if not path.exists():
        pytest.skip(f"public latencies are not in {PUBLIC}: set ESM_DATA")
    lines = works("import", path).splitlines()
    assert lines[0] == "fbnet: 5000 architectures of fbnet"
    assert len(lines) == 2 + 27
    kept = pd.read_parquet(folder() / "fbnet.parquet")
    assert {name.partition("_")[0] for name in kept.columns} == {"architecture", "lat"}
    out = works("sources", "correlation", "--space", "fbnet", "--target", "pixel3")
    assert out.splitlines()[2].split()[:2] == ["eyeriss", "0.976"]


# Listing and removing


def test_the_list_and_what_is_removed_from_it(campaign: Path) -> None:
    keep([made_table(), made_table("blocks", space="fbnet")])
    runs = ("--runs", campaign.parent)
    lines = works("sources", "list", *runs).splitlines()
    assert lines[0].split() == ["source", "space", "architectures", "missing", "kind"]
    assert lines[-1].split()[-3:] == ["campaign", "on", "edge"]
    assert len(lines) == 1 + 6 + 1
    data = json.loads(works("sources", "list", *runs, "--space", "fbnet", "--json", "-"))
    assert [entry["name"] for entry in data["sources"]] == ["blocks/a", "blocks/b", "blocks/c"]
    data = json.loads(works("sources", "list", *runs, "--space", "resnet", "--json", "-"))
    assert [entry["name"] for entry in data["sources"]] == [str(campaign)]
    works("sources", "remove", "blocks")
    assert "blocks" not in works("sources", "list")
    assert_refused(esm_host("sources", "remove", "blocks"), 2, "unknown imported source 'blocks'")


def test_an_empty_or_damaged_list() -> None:
    result = esm_host("sources", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "esm-host import FILE" in result.stderr
    keep([made_table()])
    (folder() / "boards.parquet").write_bytes(b"PAR1")
    result = esm_host("sources", "list")
    assert result.stderr.startswith("warning: ")
    assert "boards.parquet cannot be read" in result.stderr


# Correlation


def test_the_matrix_and_its_json() -> None:
    table = made_table()
    keep([table])
    lines = works("sources", "correlation").splitlines()
    assert lines[0] == "rank correlation in hundredths"
    assert lines[1].split() == ["device", "1", "2"]
    assert lines[-1].startswith("best proxy device: ")
    assert lines[-1].endswith("(correlation 0.9 or more with 1 of 2 other devices)")
    data = json.loads(works("sources", "correlation", "--json", "-"))
    assert data["space"]["name"] == "nasbench201"
    place = {name.partition("/")[2]: number for number, name in enumerate(data["sources"])}
    assert abs(place["a"] - place["b"]) == 1
    matrix, shared = np.array(data["correlation"]), np.array(data["architectures"])
    for one, other, rows in (("a", "b", slice(0, 60)), ("a", "c", slice(10, 60))):
        expected = spearmanr(table.latency_ms[one][rows], table.latency_ms[other][rows]).statistic
        assert matrix[place[one], place[other]] == pytest.approx(expected)
        assert shared[place[one], place[other]] == rows.stop - rows.start
    assert (matrix == matrix.T).all()


def test_a_target_its_proxies_and_what_algorithm_1_does() -> None:
    keep([made_table()])
    lines = works("sources", "correlation", "boards", "--target", "a").splitlines()
    assert lines[0] == "rank correlation with a"
    assert lines[1].split()[:2] == ["proxy", "correlation"]
    best, worst = (line.split() for line in lines[2:4])
    assert (best[0], best[-3], best[-2], best[-1]) == ("b", "60", "reuse", "reuse")
    assert (worst[0], worst[-3], worst[-2], worst[-1]) == ("c", "50", "adapt", "adapt")
    assert lines[4:] == ["best proxy: b"]
    data = json.loads(works("sources", "correlation", "--target", "boards/a", "--json", "-"))
    assert data["best_proxy"] == "boards/b"
    ((first, _),) = (target["proxies"] for target in data["targets"])
    low, high = first["interval"]
    assert low <= first["correlation"] <= high
    assert (first["source"], first["decision"]) == ("boards/b", "reuse")
    assert first["decision_by_estimate"] == "reuse"
    lines = works("sources", "correlation", "--target", "a", "--threshold", 1).splitlines()
    assert lines[2].split()[-1] == "adapt"


def test_several_targets_share_a_proxy() -> None:
    keep([made_table()])
    lines = works("sources", "correlation", "--target", "a", "--target", "c").splitlines()
    assert lines[1].split() == ["proxy", "a", "c"]
    assert lines[2].split()[0] == "b"
    assert lines[3] == "best proxy: b"
    assert [line.split()[0] for line in lines[5:]] == ["a", "c"]
    assert [line.split()[-1] for line in lines[5:]] == ["reuse", "adapt"]


def test_campaigns_are_compared_too(campaign: Path) -> None:
    runs = Path("runs")
    for name in ("one", "two"):
        shutil.copytree(campaign, runs / name)
    out = works("sources", "correlation", "--target", "runs/one")
    assert out.splitlines()[2].split()[:2] == ["two", "1.000"]
    named = works("sources", "correlation", "runs/one", campaign, "--json", "-")
    assert np.array(json.loads(named)["correlation"]) == pytest.approx(np.ones((2, 2)))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_heat_map(ending: str) -> None:
    keep([made_table()])
    works("sources", "correlation", "--out", f"map.{ending}")
    data = Path(f"map.{ending}").read_bytes()
    begins = {"png": b"\x89PNG", "svg": b"<svg"}
    assert data.lstrip().startswith(begins[ending])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["boards", "blocks"], ["'blocks/a' is of fbnet, not of nasbench201"]),
        ([], ["of blocks; of nasbench201"]),
        (["bords"], ["unknown source 'bords'", "esm-host sources list"]),
        (["boards/x"], ["unknown device 'x'", "choose a, b, c"]),
        (["boards/a"], ["boards/a: nothing to compare with"]),
        (["boards/a", "--target", "a"], ["nothing to compare with"]),
        (["boards", "--target", "x"], ["unknown source 'x'"]),
        (["boards", "--threshold", "0"], ["--threshold 0"]),
        (["boards", "--threshold", "1.5"], ["--threshold 1.5"]),
        (["boards", "--out", "map.gif"], ["--out map.gif", ".png, .svg or .html"]),
        (["boards", "--out", "no/map.png"], ["--out no/map.png", "no folder"]),
        (["--space", "fbnett"], ["did you mean 'fbnet'"]),
        (["--runs", "nowhere"], ["--runs", "there is no folder nowhere"]),
        (["--space", "ofa"], ["there are no sources of ofa", "esm-host import"]),
        (["far/a", "near/a", "--target", "far/a"], ["architectures in common with far/a"]),
    ],
)
def test_wrong_comparisons_are_one_line(arguments: list[str], words: list[str]) -> None:
    keep([made_table(), made_table("blocks", space="fbnet")])
    near, far = (made_table(name, 8) for name in ("near", "far"))
    far.codes[:] = draw(far.space, 40, seed=5)[-8:]
    keep([near, far])
    words = [word.replace("of blocks", "of fbnet") for word in words]
    assert_refused(esm_host("sources", "correlation", *arguments), 2, *words)


def test_pairs_that_share_nothing_are_left_empty() -> None:
    near, far = (made_table(name, 8) for name in ("near", "far"))
    far.codes[:] = draw(far.space, 40, seed=5)[-8:]
    keep([near, far])
    result = json.loads(works("sources", "correlation", "near/a", "near/b", "far/a", "--json", "-"))
    values = [value for row in result["correlation"] for value in row]
    assert values.count(None) == 4
    assert " -" in works("sources", "correlation", "near/a", "near/b", "far/a")
    works("sources", "correlation", "near/a", "far/a", "--out", "map.svg")
    refused = esm_host("sources", "split", "near/a", "far/a", "--train", 1, "--test", 1)
    assert_refused(refused, 2, "every pair of devices")


# Hard sets


def test_sets_of_devices() -> None:
    keep([made_table(), made_table("more")])
    names = ("boards", "more/c")
    lines = works("sources", "split", *names, "--train", 2, "--test", 2).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["train", "test", "mean correlation"]
    same = works("sources", "split", *names, "--train", 2, "--test", 2).splitlines()
    assert same == lines
    hard = ("--hardest", "--json", "-")
    data: dict[str, Any] = json.loads(
        works("sources", "split", *names, "--train", 2, "--test", 2, *hard)
    )
    assert {tuple(data["train"]), tuple(data["test"])} == {
        ("boards/a", "boards/b"),
        ("boards/c", "more/c"),
    }
    assert data["mean_correlation"]["between"] < -0.8
    assert data["mean_correlation"]["within_train"] > 0.8
    for train, test in ((3, 1), (0, 1), (1, 3)):
        refused = esm_host("sources", "split", *names, "--train", train, "--test", test)
        assert_refused(refused, 2, f"{train} and {test} of 4 devices: give 1 to 2 and 1 to 2")


# Names of others


def test_names_do_not_move_the_cursor(tmp_path: Path) -> None:
    table = made_table()
    strange = {"a\x1b[2J\nb": table.latency_ms["a"], "<b>": table.latency_ms["b"]}
    write_table(
        type(table)("t", table.space, table.codes, strange, {}), tmp_path / "strange.parquet"
    )
    for arguments in (
        ("import", "strange.parquet"),
        ("sources", "list"),
        ("sources", "correlation", "--out", "map.svg"),
        ("sources", "correlation", "--target", "<b>"),
        ("sources", "split", "--train", 1, "--test", 1),
    ):
        out = works(*arguments)
        assert "a?[2J b" in out
        assert "\x1b" not in out


def test_a_list_of_an_unknown_space_or_of_no_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = esm_host("sources", "list", "--space", "fbnett")
    assert_refused(refused, 2, "unknown search space 'fbnett': did you mean 'fbnet'?")
    assert_refused(
        esm_host("sources", "list", "--runs", tmp_path / "gone"), 2, "there is no folder"
    )
    (tmp_path / "file").touch()
    monkeypatch.setenv("ESM_SOURCES", str(tmp_path / "file"))
    assert_refused(esm_host("sources", "list"), 2, f"ESM_SOURCES {tmp_path}/file is no folder")
