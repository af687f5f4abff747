"""Tables of latencies, as they are kept and as others write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.dataset.benchmarks import (
    LatencyTable,
    codes_of,
    plausible_latencies,
    read_benchmark,
    write_table,
)
from esm_host.errors import DatasetError
from esm_models.spaces import SPACES, load_space
from tests.host.sources.conftest import draw

LATENCIES = st.one_of(st.just(np.nan), st.floats(1e-6, 1e6))
NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8)


@pytest.mark.parametrize("name", SPACES)
@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 99),
    st.integers(1, 5),
    st.sampled_from([{}, {"resolution": 64}, {"width_mult": 0.5, "batch": 2}, {"dtype": "int8"}]),
    st.data(),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    seed: int,
    n: int,
    chosen: dict[str, float],
    data: st.DataObject,
) -> None:
    space = load_space(name, **chosen)
    columns = st.dictionaries(
        NAMES, st.lists(LATENCIES, min_size=n, max_size=n).map(np.array), max_size=3
    )
    kept = [data.draw(columns) for _ in range(3)]
    table = LatencyTable("t", space, draw(space, n, seed), *kept)
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    write_table(table, path)
    found = read_benchmark(path)
    assert found.name == "t"
    assert found.space.settings() == space.settings()
    assert (found.codes == table.codes).all()
    read = (found.latency_ms, found.accuracy_percent, found.energy_mj)
    for mine, its in zip(kept, read, strict=True):
        assert mine.keys() == its.keys()
        for key, values in mine.items():
            np.testing.assert_array_equal(its[key], values)


def test_what_was_not_measured_is_missing() -> None:
    found = plausible_latencies([10, 20, np.nan, 0, -1, np.inf, 0.01, 30, 0.8])
    assert found.tolist() == pytest.approx([10, 20, *[np.nan] * 5, 30, 0.8], nan_ok=True)
    assert plausible_latencies([0.01, 0.02, 0.3]).tolist() == [0.01, 0.02, 0.3]  # simply fast
    assert np.isnan(plausible_latencies([np.nan, 0])).all()


BLOCKS = "_".join(["0"] * 22)
CELL = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
OFA = {"depth": "_".join("2" * 5), "kernel": "_".join("3" * 20), "expand": "_".join("4" * 20)}
OFA |= {"resolution": 160}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": 1}, "needs a column 'architecture' or 'arch'"),
        ({"arch": None}, "row 1 needs 22 blocks"),
        ({"arch": BLOCKS[2:]}, "row 1 needs 22 blocks"),
        ({"arch": BLOCKS[:-1] + "9"}, "row 1 has the block 9: choose 0, 1"),
        ({"arch": "-1" + BLOCKS[1:]}, "row 1 needs 22 blocks"),
        ({"arch": CELL[:-1]}, "not a cell of NAS-Bench-201"),
        ({"arch": CELL.replace("none~2", "nothing~2")}, "not a cell of NAS-Bench-201"),
        ({"arch": CELL.replace("~1|+", "~0|+")}, "not a cell of NAS-Bench-201"),
        ({**OFA, "depth": "2_2_2_2_5"}, "depth 5: choose 2, 3, 4"),
        ({**OFA, "depth": "2_2_2_2"}, "needs 5 depths"),
        ({**OFA, "kernel": OFA["kernel"].replace("3", "4", 1)}, "kernel 4: choose 3, 5, 7"),
        ({**OFA, "resolution": 161}, "resolution 161: choose 128"),
        ({k: v for k, v in OFA.items() if k != "resolution"}, "no column 'resolution'"),
        ({"architecture": "{"}, "row 1: "),
        ({"architecture": None}, "row 1: "),
        ({"architecture": "[" * 10_000}, "row 1: "),
        ({"architecture": '{"space": "resnet", "units": []}'}, "row 1: resnet has 4 units"),
        ({"architecture": '{"space": "resnext", "units": []}'}, "unknown space 'resnext'"),
    ],
)
def test_what_is_no_architecture_is_told(columns: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        codes_of(pd.DataFrame({name: [value] for name, value in columns.items()}))
    assert "\n" not in str(caught.value)


def test_absent_blocks_may_be_anything() -> None:
    slots = "_".join(["5", "7", "0", "99"] * 5)
    space, codes = codes_of(pd.DataFrame([{**OFA, "kernel": slots}]))
    assert space.decode(codes)[0].units == (("k5e4", "k7e4"),) * 5


def test_a_table_does_not_say_which_file_is_run(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Space: pass\n")
    name = f"{tmp_path / 'evil.py'}:Space"
    frame = pd.DataFrame({"architecture": [json.dumps({"space": name, "units": []})]})
    with pytest.raises(ValueError, match=r"evil\.py"):
        codes_of(frame)
    frame.attrs["space"] = {"name": name}
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"evil\.py"):
        read_benchmark(tmp_path / "t.parquet")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({"name": []}, r"unknown space '\[\]'"),
        ({"name": "resnet", "wings": 2}, "resnet cannot be built"),
        ({"name": "resnet", "resolution": "large"}, "resnet cannot be built"),
        ({"name": "resnet", "resolution": 8}, "resolution 8 is too small"),
    ],
)
def test_wrong_notes_of_a_space_are_told(tmp_path: Path, noted: object, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_benchmark(noted_table(tmp_path, noted))


@pytest.mark.parametrize("noted", [{"resolution": "free"}, [], "x", None])
def test_notes_that_say_nothing_leave_the_space_to_the_architectures(
    tmp_path: Path, noted: object
) -> None:
    assert read_benchmark(noted_table(tmp_path, noted)).space.resolution == 224


def noted_table(folder: Path, noted: object) -> Path:
    """A table of one network, with a note of its space."""
    space = load_space("resnet")
    (architecture,) = space.decode(draw(space, 1))
    frame = pd.DataFrame({"architecture": [json.dumps(architecture.to_json())]})
    frame.attrs["space"] = noted
    frame.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"
