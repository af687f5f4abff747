"""Proxies: looked up in a table, and counted from a network's graph."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from esm_host.dataset.benchmarks import read_benchmark
from esm_host.errors import DatasetError, UsageError
from esm_host.research.encodings.zero_cost import AnalyticProxies, Concatenated, ProxyTable
from esm_models.spaces import load_space

DATA = Path(os.environ.get("ESM_DATA", Path(__file__).parents[4].parent / "shared" / "data"))
SPACE = load_space("fbnet")
RNG = np.random.default_rng(0)


def table(path: Path, rows: int = 30, **columns: object) -> pd.DataFrame:
    blocks = RNG.integers(0, 9, (rows, 22))
    frame = pd.DataFrame(
        {
            "arch": ["_".join(map(str, row)) for row in blocks],
            "zc_synflow": 10.0 ** np.arange(rows),
            "zc_zen": np.linspace(40, 80, rows),
            "zc_constant": 3.0,
            "lat_ms_pixel": RNG.uniform(1, 2, rows),
            **columns,
        }
    )
    frame.to_parquet(path)
    return frame


def test_a_table_is_looked_up_by_architecture(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet")
    proxies = ProxyTable.read(tmp_path / "t.parquet")
    codes = read_benchmark(tmp_path / "t.parquet").codes
    assert proxies.names == ("synflow", "zen", "constant")
    assert len(proxies) == 3
    order = RNG.permutation(30)[:12]
    values = proxies.encode_codes(codes[order])
    # From 0 to 1 over the table; synflow after a logarithm.
    np.testing.assert_allclose(values[:, 1], order / 29)
    np.testing.assert_allclose(values[:, 0], order / 29, atol=0.02)
    np.testing.assert_array_equal(values[:, 2], 0)
    assert proxies.encode_codes(codes[:0]).shape == (0, 3)


def test_what_is_not_in_the_table_is_an_error(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet")
    proxies = ProxyTable.read(tmp_path / "t.parquet")
    codes = read_benchmark(tmp_path / "t.parquet").codes
    other = codes.copy()
    other[4, 0, 0] = (other[4, 0, 0] + 1) % 9
    with pytest.raises(ValueError, match=r"1 architecture not in .* such as number 4"):
        proxies.encode_codes(other)


def test_tables_without_proxies(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        ProxyTable.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(DatasetError, match="cannot be read"):
        ProxyTable.read(tmp_path / "text.parquet")
    frame = table(tmp_path / "t.parquet")
    frame[["arch", "lat_ms_pixel"]].to_parquet(tmp_path / "latencies.parquet")
    with pytest.raises(UsageError, match="no columns zc_PROXY"):
        ProxyTable.read(tmp_path / "latencies.parquet")
    table(tmp_path / "holes.parquet", zc_zen=np.nan)
    with pytest.raises(DatasetError, match="must be finite"):
        ProxyTable.read(tmp_path / "holes.parquet")
    table(tmp_path / "other.parquet", arch="1_2_3")
    with pytest.raises(DatasetError, match="not a table of proxies"):
        ProxyTable.read(tmp_path / "other.parquet")


def test_the_public_table() -> None:
    path = DATA / "fbnet.parquet"
    if not path.exists():
        pytest.skip(f"public latencies are not in {DATA}: set ESM_DATA")
    proxies = ProxyTable.read(path)
    codes = read_benchmark(path).codes
    values = proxies.encode_codes(codes)
    assert values.shape == (5000, 13)
    assert values.min() == 0
    assert values.max() == 1
    # Its FLOPs are ours, but for what is counted of other layers than convolutions.
    counted = AnalyticProxies(SPACE)
    flops = counted.encode_codes(codes)[:, counted.names.index("all.mflops")]
    assert np.corrcoef(values[:, proxies.names.index("flops")], flops)[0, 1] > 0.95


@pytest.mark.parametrize("name", ["fbnet", "nasbench201", "resnet", "ofa"])
def test_parameters_and_blocks_are_those_of_the_graph(name: str) -> None:
    space = load_space(name)
    smallest, largest = space.extremes()
    proxies = AnalyticProxies(space)
    values = proxies.encode_codes(space.encode([smallest, largest]))
    assert values.shape == (2, len(proxies))
    np.testing.assert_allclose(values[0], 0, atol=1e-6)

    def parameters(architecture: object) -> int:
        graph = onnx.load_from_string(space.build(architecture)).graph
        return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)

    counts = np.array([parameters(smallest), parameters(largest)]) / 1e6
    measured = values[1, proxies.names.index("all.mparameters")]
    assert measured == pytest.approx(np.diff(np.log1p(counts))[0], rel=0.02)
    blocks = np.log1p([smallest.depth, largest.depth])
    assert values[1, proxies.names.index("all.blocks")] == pytest.approx(np.diff(blocks)[0])


def test_side_by_side() -> None:
    class Numbers:
        def __init__(self, value: float, width: int) -> None:
            self.value, self.width = value, width

        def encode_codes(self, codes: np.ndarray) -> np.ndarray:
            return np.full((len(codes), self.width), self.value)

    both = Concatenated(Numbers(1, 2), Numbers(5, 1))
    codes = SPACE.encode(SPACE.extremes())
    np.testing.assert_array_equal(both.encode_codes(codes), [[1, 1, 5], [1, 1, 5]])
    with pytest.raises(ValueError, match="pass one or more"):
        Concatenated()
