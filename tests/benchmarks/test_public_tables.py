"""Public tables from tiny files of the formats that their papers publish."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.public_tables import main
from esm_host.dataset.benchmarks import read_benchmark
from esm_host.research.encodings.zero_cost import ProxyTable
from tests.host.sources.test_published import CELLS, help_folder, hw_nas_bench

BLOCKS = [[8] * 22, [0] * 21 + [7]]


def proxies(path: Path, archs: list[list[int]]) -> Path:
    rows = {
        "_".join(map(str, arch)): {"synflow": 1e30 * number, "params": 1e6 + number}
        for number, arch in enumerate(archs)
    }
    path.write_text(json.dumps(rows))
    return path


def test_fbnet_with_proxies_of_another_order(tmp_path: Path) -> None:
    fbnet = help_folder(tmp_path / "fbnet", arch=BLOCKS)
    zero_cost = proxies(tmp_path / "zc_fbnet.json", BLOCKS[::-1])
    main([str(tmp_path / "data"), "--fbnet", str(fbnet), "--zero-cost", str(zero_cost)])
    path = tmp_path / "data" / "fbnet.parquet"
    table = read_benchmark(path)
    assert table.space.name == "fbnet"
    assert table.latency_ms["pixel2"].tolist() == [10.5, 20.5]
    frame = pd.read_parquet(path)
    assert frame["arch"].tolist() == ["_".join(map(str, arch)) for arch in BLOCKS]
    assert frame["zc_params"].tolist() == [1e6 + 1, 1e6]
    assert ProxyTable.read(path).names == ("synflow", "params")


def test_nasbench201_with_accuracies(tmp_path: Path) -> None:
    cells = help_folder(tmp_path / "cells", str_arch2idx={CELLS[1]: 0, CELLS[0]: 1})
    columns = [
        f"{task}-{part}" for task in ("cifar10", "cifar100", "imagenet") for part in ("test", "val")
    ]
    accuracies = pd.DataFrame(
        [[0, CELLS[0], *range(6)], [1, CELLS[1], *range(10, 16)]],
        columns=["arch", "cellstr", *columns],
    )
    accuracies.to_csv(tmp_path / "accuracies.csv")
    main(
        [
            *(str(tmp_path), "--nasbench201", str(cells)),
            *("--accuracies", str(tmp_path / "accuracies.csv")),
        ]
    )
    table = read_benchmark(tmp_path / "nasbench201.parquet")
    assert table.accuracy_percent["imagenet16_val"].tolist() == [15, 5]
    assert table.latency_ms["pixel2"].tolist() == [10.5, 20.5]


def test_once_for_all(tmp_path: Path) -> None:
    rows = [{"ks": [7] * 20, "e": [6] * 20, "d": [4] * 5, "r": [side]} for side in (160, 224)]
    ofa = help_folder(tmp_path / "ofa", ofa_archs={"arch": rows})
    main([str(tmp_path), "--ofa", str(ofa)])
    table = read_benchmark(tmp_path / "ofa_mobilenetv3.parquet")
    assert [each.resolution for each in table.space.decode(table.codes)] == [160, 224]


def test_transformers(tmp_path: Path) -> None:
    columns = ["encoder_embed_dim", "latency_mean_encoder", "latency_mean_decoder"]
    frame = pd.DataFrame([[640, 300.0, 500.0]], columns=[*columns])
    frame.assign(latency_std_encoder=[1.5]).to_csv(tmp_path / "pi.csv", index=False)
    main([str(tmp_path), "--hat-raspberrypi", str(tmp_path / "pi.csv")])
    (row,) = pd.read_parquet(tmp_path / "hat_raspberrypi.parquet").to_dict("records")
    assert row == {
        "encoder_embed_dim": 640,
        "lat_ms_encoder": 300,
        "lat_ms_decoder": 500,
        "std_ms_encoder": 1.5,
    }


def test_energies(tmp_path: Path) -> None:
    content = hw_nas_bench(np.random.default_rng(0))
    (tmp_path / "hw.pickle").write_bytes(pickle.dumps(content))
    main([str(tmp_path), "--hw-nas-bench", str(tmp_path / "hw.pickle")])
    table = read_benchmark(tmp_path / "hwnasbench_energy.parquet")
    assert (table.space.name, dict(table.latency_ms)) == ("nasbench201", {})
    assert table.energy_mj["edgegpu"].tolist() == [1.0, 2.0]


def test_wrong_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fbnet = help_folder(tmp_path / "fbnet", arch=BLOCKS)
    zero_cost = proxies(tmp_path / "zc_fbnet.json", BLOCKS[:1])
    with pytest.raises(SystemExit, match="lacks 1 of 2 architectures"):
        main([str(tmp_path), "--fbnet", str(fbnet), "--zero-cost", str(zero_cost)])
    for arguments in ([], ["--zero-cost", "x.json"]):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *arguments])
    assert "give --fbnet" in capsys.readouterr().err
