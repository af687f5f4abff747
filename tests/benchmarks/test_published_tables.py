"""Benchmarks on published tables of transformers and energies, on tables that are made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import energy_columns, transformer_tables
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.encoding.cost import CostEncoder
from esm_models.spaces import load_space
from tests.host.sources.conftest import draw


def rows_of(text: str) -> list[list[str]]:
    _, _, *rows = text.splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def transformers(rng: np.random.Generator, n: int, slope: float) -> pd.DataFrame:
    """HAT's columns of random networks, and latencies in proportion to their work."""
    layers = rng.integers(1, 7, n)
    width = {side: rng.choice([512, 640], n) for side in ("encoder", "decoder")}
    columns: dict[str, object] = {}
    ffn = {}
    for side, depth in (("encoder", np.full(n, 6)), ("decoder", layers)):
        ffn[side] = 1024 * (1 + rng.integers(0, 2 * depth + 1) / depth)
        columns |= {
            f"{side}_embed_dim": width[side],
            f"{side}_layer_num": depth,
            f"{side}_ffn_embed_dim_avg": ffn[side],
            f"{side}_self_attention_heads_avg": 4 + 4 * rng.integers(0, depth + 1) / depth,
        }
    columns["decoder_ende_attention_heads_avg"] = 4 + 4 * rng.integers(0, layers + 1) / layers
    columns["decoder_arbitrary_ende_attn_avg"] = 1 + rng.integers(0, 2 * layers + 1) / layers
    columns["lat_ms_encoder"] = slope * 6e-4 * width["encoder"] * (2000 + ffn["encoder"])
    columns["lat_ms_decoder"] = slope * 2e-3 * layers * width["decoder"] * (5000 + ffn["decoder"])
    return pd.DataFrame(columns)


@pytest.mark.benchmarks
def test_transformers_of_another_device_are_known_from_20(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, slope in (("hat_raspberrypi", 1.0), ("hat_xeon", 0.1)):
        transformers(rng, 900, slope).to_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setenv("ESM_DATA", str(tmp_path))
    file = tmp_path / "found.json"
    transformer_tables.main(["--seeds", "2", "--json", str(file)])
    rows = rows_of(capsys.readouterr().out)
    assert {part for part, *_ in rows} == {"both", "both, apart", "encoder", "decoder"}
    found = pd.DataFrame(json.loads(file.read_text()))
    ours = found[(found["method"] == "`auto` and the Xeon") & (found["samples"] == "chosen")]
    assert set(ours["seed"]) == {0, 1}
    assert ours["spearman"].min() > 0.97
    assert ours["error"].max() < 5


@pytest.mark.benchmarks
def test_energies_are_learnt_with_and_without_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = load_space("nasbench201")
    codes = draw(space, 900)
    work = CostEncoder(space).encode_codes(codes).astype(float)
    size = 1 + work @ np.random.default_rng(1).uniform(0, 1, work.shape[1])
    energy_mj = {"eyeriss": 0.5 * size, "fpga": 9 * size}
    none = LatencyTable("x", space, codes, {}, {}, energy_mj)
    write_table(none, tmp_path / "hwnasbench_energy.parquet")
    known = LatencyTable("x", space, codes, {"eyeriss": size, "phone": 2 * size}, {})
    write_table(known, tmp_path / "nasbench201.parquet")
    monkeypatch.setenv("ESM_DATA", str(tmp_path))
    monkeypatch.setattr(energy_columns, "SIZES", (20,))
    energy_columns.main(["--seeds", "1", "--json", str(tmp_path / "found.json")])
    rows = rows_of(capsys.readouterr().out)
    expected = [("eyeriss", "without"), ("eyeriss", "with"), ("fpga", "without"), ("fpga", "with")]
    assert [(device, sources) for device, _, sources, *_ in rows] == expected
    found = json.loads((tmp_path / "found.json").read_text())
    assert min(each["accuracy"] for each in found if each["sources"] == "with") > 95


def test_an_own_device_is_no_source_of_its_energy() -> None:
    space = load_space("nasbench201")
    codes = draw(space, 900)
    latency_ms = {"eyeriss": np.ones(900), "phone": np.ones(900)}
    table = LatencyTable("x", space, codes, latency_ms, {})
    assert [s.name for s in energy_columns.sources_of(table, "eyeriss", 0)] == ["phone"]


@pytest.mark.parametrize("program", [energy_columns, transformer_tables])
def test_without_the_tables_they_end_with_one_line(
    program: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ESM_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as caught:
        program.main()  # type: ignore[attr-defined]
    assert caught.value.code == 2
    assert "ESM_DATA is not set: give the folder of" in capsys.readouterr().err
