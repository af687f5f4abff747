"""What is kept, under which names, and what there is to learn from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esm_host.campaign.run import load_run
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.errors import DatasetError, UsageError
from esm_host.sources import registry
from esm_host.sources.folder import folder, tables
from esm_host.sources.registry import (
    LEAST,
    describe,
    entries,
    fitting,
    keep,
    load,
    of_one_space,
    remove,
)
from esm_host.transfer.source import Source, side_by_side
from esm_models.errors import UnknownSpaceError
from esm_models.spaces import load_space
from tests.host.sources.conftest import draw, made_table, measured

EDGE = load_space("resnet", resolution=32, width_mult=0.25)
CELLS = load_space("nasbench201")


def named(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


# Keeping


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert folder() == tmp_path / "imported"
    monkeypatch.delenv("ESM_SOURCES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert folder() == tmp_path / "data" / "esm" / "sources"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".local" / "share" / "esm" / "sources"
    assert tables() == []


def test_a_name_is_taken_once_unless_it_is_replaced() -> None:
    keep([made_table("one")])
    with pytest.raises(UsageError, match="'one': give replace, or another name"):
        keep([made_table("two"), made_table("one")])
    assert tables() == ["one"]  # all or none
    keep([made_table("two"), made_table("one", n=30)], replace=True)
    assert tables() == ["one", "two"]
    assert [len(source) for source in load("one")] == [30, 30, 20]
    remove("one")
    assert tables() == ["two"]
    with pytest.raises(UsageError, match="unknown imported source 'one': choose two"):
        remove("one")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 65, "ä"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(UsageError, match="give letters, digits"):
        keep([made_table(name)])
    with pytest.raises(UsageError, match="unknown imported source"):
        remove(name)
    assert tables() == []


# Loading


def test_a_table_one_of_its_devices_a_file_and_a_campaign(tmp_path: Path, campaign: Path) -> None:
    table = made_table()
    keep([table])
    assert named(load("boards")) == ["boards/a", "boards/b", "boards/c"]
    (c,) = load("boards/c")
    assert len(c) == 50
    np.testing.assert_array_equal(c.latency_ms, table.latency_ms["c"][10:])
    assert (c.codes == table.codes[10:]).all()
    write_table(table, tmp_path / "file.parquet")
    assert named(load(str(tmp_path / "file.parquet"))) == ["file/a", "file/b", "file/c"]
    (edge,) = load(str(campaign))
    frame = load_run(campaign).measurements()
    assert (edge.name, edge.space.settings()) == (str(campaign), EDGE.settings())
    assert edge.latency_ms.tolist() == frame["latency_ms"].tolist()
    keys = [architecture.key for architecture in edge.space.decode(edge.codes)]
    assert keys == frame["architecture_key"].tolist()


def test_energies_are_sources_of_their_own_and_only_where_they_are_named(tmp_path: Path) -> None:
    table = made_table()
    energies = replace(table, name="fed", latency_ms={}, energy_mj={"a": table.latency_ms["a"]})
    keep([replace(table, energy_mj={"a": 5 * table.latency_ms["a"]}), energies])
    assert named(load("boards")) == ["boards/a", "boards/b", "boards/c"]
    (source,) = load("boards/a:energy")
    assert (source.metric, load("boards/a")[0].metric) == ("energy", "latency")
    np.testing.assert_array_equal(source.latency_ms, 5 * table.latency_ms["a"])
    assert named(load("fed")) == ["fed/a:energy"]
    assert named(fitting(CELLS, [], tmp_path)) == ["boards/a", "boards/b", "boards/c"]
    assert named(fitting(CELLS, ["boards/a:energy"], tmp_path)) == ["boards/a:energy"]
    with pytest.raises(UsageError, match="unknown device 'b:energy' of source 'boards'"):
        load("boards/b:energy")
    listed = {entry.name: (entry.metric, entry.unit) for entry in entries(tmp_path)[0]}
    assert listed["boards/a:energy"] == listed["fed/a:energy"] == ("energy", "mJ")
    assert listed["boards/a"] == ("latency", "ms")


def test_only_trusted_measurements_of_a_campaign_count(campaign: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    settings = json.loads((copy / "settings.json").read_text())
    settings["train_on"] = "noisy"  # none of these is
    (copy / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DatasetError, match="no measurements to learn from yet"):
        load(str(copy))


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    keep([made_table()])
    for name, words in (
        ("bords", r"unknown source 'bords': did you mean 'boards'\? give one of esm-host"),
        ("boards/d", "unknown device 'd' of source 'boards': choose a, b, c"),
        ("gone.parquet", "there is no gone.parquet"),
    ):
        with pytest.raises(UsageError, match=words):
            load(name)
    (folder() / "boards.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        load("boards")
    nothing = {"a": np.full(5, np.nan)}
    keep([LatencyTable("none", CELLS, draw(CELLS, 5), nothing, {})])
    with pytest.raises(DatasetError, match="'none' has no latencies"):
        load("none")


# What fits


def test_all_that_fits_a_space(campaign: Path, tmp_path: Path) -> None:
    keep([made_table(), made_table("blocks", space="fbnet"), made_table("few", LEAST - 1)])
    runs = tmp_path / "runs"
    shutil.copytree(campaign, runs / "edge")
    shutil.copytree(campaign, runs / "again")
    (runs / "empty").mkdir()
    (runs / "empty" / "settings.json").write_text("{")
    (folder() / "damaged.parquet").write_bytes(b"PAR1")
    assert named(fitting(CELLS, [], runs)) == ["boards/a", "boards/b", "boards/c"]
    assert named(fitting(EDGE, [], runs)) == [str(runs / "again"), str(runs / "edge")]
    assert named(fitting(EDGE, [], runs, but=runs / "." / "edge")) == [str(runs / "again")]
    assert fitting(load_space("resnet"), [], runs) == []  # 224 px
    assert fitting(EDGE, [], tmp_path / "nowhere") == []


def test_a_table_may_be_called_as_the_folder_of_campaigns(campaign: Path) -> None:
    shutil.copytree(campaign, "runs/edge")
    keep([made_table("runs")])
    assert named(fitting(EDGE, [], Path("runs"))) == ["runs/edge"]
    assert named(fitting(CELLS, [], Path("runs"))) == ["runs/a", "runs/b", "runs/c"]
    assert named(load("runs/edge")) == ["runs/edge"]


def test_what_is_named_is_taken_as_it_is_and_must_fit(campaign: Path, tmp_path: Path) -> None:
    keep([made_table(), made_table("few", 5)])
    names = ["few", "boards/b", "boards"]
    assert named(fitting(CELLS, names, tmp_path)) == [
        *("few/a", "few/b", "boards/b", "boards/a", "boards/c")
    ]
    with pytest.raises(UsageError, match="is of resnet, not of fbnet: omit it"):
        fitting(load_space("fbnet"), [str(campaign)], tmp_path)
    other = load_space("resnet", resolution=64, batch=8)  # a device may be another by its batch
    assert named(fitting(other, [str(campaign)], tmp_path)) == [str(campaign)]
    (folder() / "boards.parquet").write_bytes(b"")
    with pytest.raises(DatasetError):
        fitting(CELLS, ["boards"], tmp_path)


def test_a_source_in_other_contexts_is_refused_with_their_names(
    campaign: Path, tmp_path: Path
) -> None:
    batched = EDGE.with_contexts({"batch": (1, 2)})
    with pytest.raises(UsageError) as refused:
        fitting(batched, [str(campaign)], tmp_path)
    own = describe(EDGE)
    assert refused.value.for_command() == (
        f"source '{campaign}' is of {own}, not of {own}, batch 1/2: leave out --context batch, or "
        "omit it"
    )
    source = Source("placed", batched, batched.encode([batched.extremes()[0]]), np.ones(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", lambda name: [source])
        with pytest.raises(UsageError) as refused:
            fitting(EDGE, ["placed"], tmp_path)
    assert refused.value.for_command() == (
        f"source 'placed' is of {own}, batch 1/2, not of {own}: give --context batch=1,2, or omit "
        "it"
    )


def test_looking_at_campaigns_runs_no_file(tmp_path: Path, campaign: Path) -> None:
    """Campaigns of others' own spaces may lie in the folder: their files are left alone."""
    runs, proof = tmp_path / "runs", tmp_path / "it ran"
    theirs = shutil.copytree(campaign, runs / "theirs")
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    settings = json.loads((theirs / "settings.json").read_text())
    settings["space"] = f"{tmp_path / 'evil.py'}:Evil"
    (theirs / "settings.json").write_text(json.dumps(settings))
    found, problems = entries(runs)
    assert (len(found), problems) == (1, [])
    assert found[0].space.startswith(settings["space"])
    assert fitting(EDGE, [], runs) == []
    assert registry.everything(runs) == []
    with pytest.raises(UsageError, match="there are no sources"):
        of_one_space([], runs)
    assert not proof.exists()


def test_campaigns_of_ones_own_space_are_found_when_it_is_asked_for(
    tmp_path: Path, campaign: Path
) -> None:
    runs = tmp_path / "runs"
    mine = shutil.copytree(campaign, runs / "mine")
    (tmp_path / "own.py").write_text(
        "from esm_models.spaces.resnet import ResNetSpace\nclass Mine(ResNetSpace): pass\n"
    )
    name = f"{tmp_path / 'own.py'}:Mine"
    settings = json.loads((mine / "settings.json").read_text())
    (mine / "settings.json").write_text(json.dumps({**settings, "space": name}))
    asks = load_space(name, resolution=32, width_mult=0.25)
    assert named(fitting(asks, [], runs)) == [str(mine)]
    found, _ = of_one_space([], runs, name)
    assert named(found) == [str(mine)]
    (tmp_path / "own.py").unlink()
    assert fitting(asks, [], runs) == []
    with pytest.raises(UnknownSpaceError, match="no file"):
        fitting(asks, [str(mine)], runs)


# The list


def test_the_list_has_devices_campaigns_and_what_is_wrong(tmp_path: Path, campaign: Path) -> None:
    keep([made_table()])
    (folder() / "damaged.parquet").write_bytes(b"PAR1")
    runs = campaign.parent
    found, (problem,) = entries(runs)
    assert [(e.name, e.kind, e.device, e.architectures, e.missing) for e in found] == [
        ("boards/a", "imported", "a", 60, 0),
        ("boards/b", "imported", "b", 60, 0),
        ("boards/c", "imported", "c", 50, 10),
        (str(campaign), "campaign", "edge", 60, 0),
    ]
    assert [e.space for e in found] == ["nasbench201"] * 3 + ["resnet, 32 px, width x0.25"]
    assert "damaged.parquet" in problem


# Choosing what is compared


def test_sources_of_one_space(tmp_path: Path) -> None:
    keep([made_table(), made_table("more", 30), made_table("blocks", space="fbnet")])
    with pytest.raises(UsageError, match="of fbnet; of nasbench201: choose with space"):
        of_one_space([], tmp_path)
    found, targets = of_one_space([], tmp_path, "fbnet")
    assert (named(found), targets) == (["blocks/a", "blocks/b", "blocks/c"], [])
    found, targets = of_one_space([], tmp_path, targets=["blocks/b"])
    assert (named(found), targets) == (["blocks/a", "blocks/b", "blocks/c"], [1])
    found, targets = of_one_space(["boards"], tmp_path, targets=["c", "more/a"])
    assert named(found) == ["boards/a", "boards/b", "boards/c", "more/a"]
    assert targets == [2, 3]


@pytest.mark.parametrize(
    ("names", "space", "targets", "words"),
    [
        ([], "fbnett", [], "did you mean 'fbnet'"),
        ([], "ofa", [], "no sources of ofa with 20 architectures"),
        (["boards", "blocks"], None, [], "'blocks/a' is of fbnet, not of nasbench201"),
        (["boards"], "fbnet", [], "'boards/a' is of nasbench201, not fbnet"),
        ([], "nasbench201", ["d"], "unknown source 'd'"),
        ([], None, ["a"], "'a' matches 2 devices: give one of blocks/a, boards/a"),
        ([], "nasbench201", ["blocks"], "'blocks' matches 3 devices"),
        ([], "nasbench201", ["blocks/a"], "'blocks/a' is of fbnet, not nasbench201"),
        (["boards"], None, ["blocks/a"], "is of nasbench201, not of fbnet"),
    ],
)
def test_sources_of_several_are_refused(
    tmp_path: Path, names: list[str], space: str | None, targets: list[str], words: str
) -> None:
    keep([made_table(), made_table("blocks", space="fbnet")])
    with pytest.raises((UsageError, UnknownSpaceError), match=words):
        of_one_space(names, tmp_path, space, targets)


def test_a_new_device_with_few_measurements_may_be_a_target(tmp_path: Path) -> None:
    few = measured(tmp_path / "runs" / "new", 12)
    many = measured(tmp_path / "runs" / "old", 40)
    assert named(fitting(EDGE, [], tmp_path / "runs")) == [str(many)]
    found, targets = of_one_space([], tmp_path / "runs", targets=[str(few)])
    assert (named(found), targets) == ([str(many), str(few)], [1])


# Side by side


def test_side_by_side_joins_by_architecture() -> None:
    codes = draw(CELLS, 4)
    one = Source("one", CELLS, codes[[0, 1, 2]], np.array([1.0, 2.0, 3.0]))
    other = Source("other", CELLS, codes[[3, 2, 2]], np.array([9.0, 4.0, 6.0]))
    rows = side_by_side([one, other])
    assert rows.shape == (4, 2)
    text = {tuple("-" if np.isnan(v) else f"{v:g}" for v in row) for row in rows}
    assert text == {("1", "-"), ("2", "-"), ("3", "5"), ("-", "9")}


def test_sources_of_other_settings_fit_but_are_not_taken_unasked(tmp_path: Path) -> None:
    source = Source("x", CELLS, draw(CELLS, 2), np.ones(2))
    batches = load_space("nasbench201", batch=8)
    assert source.fits(CELLS)
    assert source.fits(batches)
    assert not replace(source, space=EDGE).fits(CELLS)
    keep([made_table()])
    assert fitting(batches, [], tmp_path) == []
    assert named(fitting(batches, ["boards/a"], tmp_path)) == ["boards/a"]
