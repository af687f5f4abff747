"""Tables of others, by the columns that their owner names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.sources.columns import read_columns
from esm_models.spaces import load_space
from tests.host.sources.conftest import PUBLIC, draw

CELLS = [
    "|none~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|nor_conv_3x3~1|avg_pool_3x3~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|",
    "|avg_pool_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]
FRAME = pd.DataFrame(
    {
        "cell": CELLS,
        "mean_us": [1500, 2500, 800],
        "orin": [1.5, np.nan, 0.0],
        "acc_toys": [50.0, 60.0, 70.0],
        "zc_flops": [1, 2, 3],
    }
)


def written(frame: pd.DataFrame, folder: Path, ending: str = ".csv") -> Path:
    path = folder / f"board{ending}"
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if ".tsv" in ending else ",", index=False)
    return path


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"])
@pytest.mark.parametrize(("unit", "ms"), [("us", 1e-3), ("ns", 1e-6), ("ms", 1.0), ("s", 1e3)])
def test_named_columns_and_units(tmp_path: Path, ending: str, unit: str, ms: float) -> None:
    path = written(FRAME, tmp_path, ending)
    table = read_columns(path, None, "cell", {"mean_us": "jet", "orin": "ori=n"}, unit)
    assert (table.name, table.space.name, len(table)) == ("board", "nasbench201", 3)
    assert table.latency_ms["jet"] == pytest.approx(np.array([1500, 2500, 800]) * ms)
    assert table.latency_ms["ori=n"][0] == pytest.approx(1.5 * ms)
    assert np.isnan(table.latency_ms["ori=n"][1:]).all()
    assert {k: v.tolist() for k, v in table.accuracy_percent.items()} == {"toys": [50, 60, 70]}
    first, *_ = table.space.decode(table.codes)
    operations = ["none", "none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
    assert [label for unit in first.units for label in unit] == operations


def test_columns_need_no_names_where_they_are_called_as_ours(tmp_path: Path) -> None:
    frame = FRAME.rename(columns={"cell": "arch", "mean_us": "lat_ms_jet"})
    table = read_columns(written(frame, tmp_path), "mine")
    assert (table.name, list(table.latency_ms)) == ("mine", ["jet"])
    assert table.latency_ms["jet"].tolist() == [1500, 2500, 800]


def test_architectures_as_json_of_a_space_with_other_settings(tmp_path: Path) -> None:
    space = load_space("resnet", resolution=64, width_mult=0.25)
    codes = draw(space, 5)
    texts = [json.dumps(architecture.to_json()) for architecture in space.decode(codes)]
    path = written(pd.DataFrame({"net": texts, "t": range(1, 6)}), tmp_path)
    chosen = {"resolution": 64, "width_mult": 0.25}
    table = read_columns(path, None, "net", {"t": "pi"}, settings=chosen)
    assert table.space.settings() == space.settings()
    assert (table.codes == codes).all()
    assert read_columns(path, None, "net", {"t": "pi"}).space.resolution == 224


def test_blocks_of_fbnet_in_the_benchmarks_order(tmp_path: Path) -> None:
    blocks = "_".join(map(str, [8, 0, 1, 2, 3, 4, 5, 6, 7, *[8] * 13]))
    path = written(pd.DataFrame({"b": [blocks], "t": [3.0]}), tmp_path)
    table = read_columns(path, None, "b", {"t": "pi"})
    (architecture,) = table.space.decode(table.codes)
    assert architecture.units[0] == ("skip",)
    assert architecture.units[1] == ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6")
    assert architecture.units[2] == ("k5_e1", "k5_e1_g2", "k5_e3", "k5_e6")


@pytest.mark.parametrize(("unit", "mj"), [("J", 1e3), ("mJ", 1.0), ("uJ", 1e-3), ("nJ", 1e-6)])
def test_energies_are_kept_apart_from_latencies(tmp_path: Path, unit: str, mj: float) -> None:
    path = written(FRAME, tmp_path)
    named = {"latencies": {"mean_us": "jet"}, "energies": {"orin": "jet"}}
    table = read_columns(path, None, "cell", **named, energy_unit=unit)
    assert table.latency_ms["jet"].tolist() == [1500, 2500, 800]
    assert table.energy_mj["jet"][0] == pytest.approx(1.5 * mj)
    assert np.isnan(table.energy_mj["jet"][1:]).all()
    frame = FRAME.rename(columns={"cell": "arch", "orin": "energy_mj_orin"})
    table = read_columns(written(frame, tmp_path))
    assert (list(table.latency_ms), list(table.energy_mj)) == ([], ["orin"])


def test_small_energies_are_no_mistakes(tmp_path: Path) -> None:
    path = written(FRAME.assign(orin=[1e-3, 50, 60]), tmp_path)
    energies = read_columns(path, None, "cell", energies={"orin": "orin"}).energy_mj["orin"]
    assert energies.tolist() == [1e-3, 50, 60]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no column lat_ms_DEVICE: name one with latencies="),
        ({"latencies": {"orin": "orin"}}, "no architectures of a known space"),
        (
            {"latencies": {"orin": "orin"}, "architecture": "net"},
            "unknown column 'net' of PATH: it has 'cell', 'mean_us'",
        ),
        (
            {"latencies": {"xavier": "x"}, "architecture": "cell"},
            "unknown column 'xavier' of PATH: it has 'cell', 'mean_us'",
        ),
        ({"latencies": {"cell": "x"}, "architecture": "cell"}, "must hold numbers: '|none~0|"),
        ({"latencies": {"orin": "x"}, "architecture": "orin"}, "row 1 needs 22 blocks"),
        ({"latencies": {"orin": "x"}, "unit": "h"}, "unknown unit 'h': choose s, ms, us, ns"),
        ({"unit": "us"}, "unit us needs columns that latencies={COLUMN: DEVICE} names"),
        ({"energies": {"orin": "x"}, "energy_unit": "W"}, "unknown energy unit 'W': choose J, mJ"),
        ({"energy_unit": "J"}, "energy_unit J needs columns that energies={COLUMN: DEVICE} names"),
    ],
)
def test_wrong_input_is_one_line_with_the_cure(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    path = written(FRAME, tmp_path)
    with pytest.raises(EsmError) as caught:
        read_columns(path, **options)  # type: ignore[arg-type]
    assert words.replace("PATH", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        read_columns(tmp_path / "none.csv")
    for ending in (".csv", ".csv.gz", ".parquet", ".tsv"):
        for content in (b"", b"\x00\xff\xfe" * 50, b'"'):
            path = tmp_path / f"damaged{ending}"
            path.write_bytes(content)
            with pytest.raises(EsmError) as caught:
                read_columns(path)
            assert "\n" not in str(caught.value)


def test_a_table_without_any_latency_is_refused(tmp_path: Path) -> None:
    path = written(FRAME.assign(orin=[0, -1, np.nan]), tmp_path)
    with pytest.raises(DatasetError, match="no latency above 0 in orin"):
        read_columns(path, None, "cell", {"orin": "orin"})
    with pytest.raises(DatasetError, match="no energy above 0 in orin"):
        read_columns(path, None, "cell", energies={"orin": "orin"})


@pytest.mark.parametrize(
    ("name", "space", "rows", "devices", "tasks"),
    [
        ("nasbench201", "nasbench201", 15_625, 27, 6),
        ("fbnet", "fbnet", 5000, 27, 0),
        ("ofa_mobilenetv3", "ofa", 5000, 6, 0),
    ],
)
def test_the_public_tables(name: str, space: str, rows: int, devices: int, tasks: int) -> None:
    path = PUBLIC / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"public latencies are not in {PUBLIC}: set ESM_DATA")
    table = read_columns(path)
    assert (table.space.name, len(table)) == (space, rows)
    assert (len(table.latency_ms), len(table.accuracy_percent)) == (devices, tasks)
    missing = {d: int(np.isnan(v).sum()) for d, v in table.latency_ms.items()}
    expected = {"pixel3": 273, "raspi4": 235} if name == "nasbench201" else {}
    assert {device: count for device, count in missing.items() if count} == expected


def test_the_public_energies() -> None:
    path = PUBLIC / "hwnasbench_energy.parquet"
    if not path.exists():
        pytest.skip(f"public energies are not in {PUBLIC}: set ESM_DATA")
    table = read_columns(path)
    assert (table.space.name, len(table), dict(table.latency_ms)) == ("nasbench201", 15_625, {})
    assert list(table.energy_mj) == ["eyeriss", "fpga"]
    assert all(np.isfinite(values).all() for values in table.energy_mj.values())
