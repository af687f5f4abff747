"""Reading a campaign's folder and a timing's JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import esm_host
from esm_host import load_run, load_timing
from esm_host.errors import DatasetError, UsageError
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.timing.frames import TimingFile
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from tests.host.report.timings import older, reference, timing


def test_measurements_of_a_campaign(campaign: Path) -> None:
    run = load_run(campaign)
    frame = run.measurements()
    assert run.result is not None
    assert len(frame) == run.result["measured_models"]
    assert frame["architecture_key"].is_unique
    assert (frame["latency_ms"] > 0).all()
    assert (frame[["first_run_ms", "load_ms"]] >= 0).all(axis=None)
    units = frame[[f"unit{number}_depth" for number in (1, 2, 3, 4)]]
    assert (units.sum(axis=1) == frame["depth"]).all()
    assert frame["mean_kernel"].between(3, 7).all()
    assert set(frame["verdict"]) <= {"stable", "noisy", "unresolved", "throttled"}
    for row in frame.itertuples(index=False):
        low, high = map(int, row.bin.split("-"))
        assert low <= row.depth <= high
    overall = accuracy_percent(frame["latency_ms"].to_numpy(), frame["predicted_ms"].to_numpy())
    assert overall == pytest.approx(run.result["rounds"][-1]["accuracy_percent"], abs=0.5)


def test_blocks_references_rounds_and_states(campaign: Path) -> None:
    run = load_run(campaign)
    blocks, references = run.blocks(), run.references()
    assert blocks["block"].tolist() == list(range(1, len(blocks) + 1))
    assert np.median(blocks["pace"]) == pytest.approx(1, abs=1e-3)
    assert set(blocks["device"]) == {run.settings.device}
    assert len(references) == len(blocks) * run.settings.references
    assert references["limit_percent"].min() >= run.settings.reference_tolerance_percent
    rounds, accuracy = run.rounds(), run.accuracy()
    assert len(accuracy) == len(rounds) * (run.settings.depth_bins(run.space).count + 1)
    last = accuracy[(accuracy["round"] == rounds["round"].max()) & (accuracy["bin"] == "all")]
    assert last["accuracy_percent"].item() == rounds["accuracy_percent"].iloc[-1]
    assert run.states().columns[:3].tolist() == ["block", "device", "at_s"]


def test_an_unfinished_campaign_has_measurements_and_no_predictions(
    campaign: Path, tmp_path: Path
) -> None:
    for name in ("settings.json", "store.sqlite"):
        (tmp_path / name).write_bytes((campaign / name).read_bytes())
    run = load_run(tmp_path)
    assert run.result is None
    frame = run.measurements()
    assert len(frame)
    assert frame["predicted_ms"].isna().all()
    with pytest.raises(DatasetError, match=r"esm_host\.resume"):
        run.predict([])


def test_what_is_no_campaign_is_refused_in_one_line(campaign: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"esm_host\.profile"):
        load_run(tmp_path)
    (tmp_path / "settings.json").write_bytes((campaign / "settings.json").read_bytes())
    with pytest.raises(DatasetError, match="no measurements yet"):
        load_run(tmp_path).measurements()
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DatasetError, match=r"esm_host\.resume"):
        load_run(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "store.sqlite").write_bytes((campaign / "store.sqlite").read_bytes())
    (tmp_path / "predictions.csv").write_text("nothing\n")
    with pytest.raises(DatasetError, match="writes it again"):
        load_run(tmp_path).measurements()


def test_predicts_values_and_json_alike(campaign: Path) -> None:
    architecture = Architecture("resnet", (("k3e1", "k5e1"), ("k3e1",), ("k3e1",), ("k7e1/2",)))
    run = load_run(campaign)
    assert run.predict([architecture, architecture.to_json()]).tolist() == [5.0, 5.0]
    with pytest.raises(InvalidArchitectureError):
        run.predict([{"space": "resnet", "units": []}])


def test_an_architecture_on_one_line() -> None:
    units = (("k3e1", "k3e1", "k5e1"), ("k7e1",), ())
    assert Architecture("resnet", units).to_text() == "2*k3e1 k5e1 | k7e1 | -"


def test_frames_of_a_timing(timings: Path) -> None:
    data = json.loads(timings.read_text())
    read = load_timing(timings)
    results, samples = read.results(), read.samples()
    assert results["label"].is_unique
    assert results["label"].iloc[2] == "large.onnx · batch 1 · pi4"
    assert np.isnan(results["trimmed_mean_ms"].iloc[-1])
    assert results["failure"].iloc[-1].startswith("out_of_memory")
    assert results["failure"].iloc[0] is None
    own = samples[samples["result"] == 3]
    assert own["latency_ms"].tolist() == data["results"][3]["samples_ms"]
    assert read.operators()["share_percent"].sum() == pytest.approx(100)
    assert set(read.nodes()["result"]) == {2}
    assert read.comparisons()["ratio"].tolist() == [2.01, 1.01, 3.3]
    assert set(read.states()["device"]) == {"pi4", "rack-1"}


def test_paces_are_those_of_the_reference_models() -> None:
    data = timing()
    places = data["context"]["devices"]
    again = reference("large", 1.0, block=1)
    places["pi4"]["references"].append(again)
    places["rack-1"]["usual"] = None
    paces = TimingFile.of(data).paces()
    assert len(paces) == 2 * 20 + 10
    middle = paces.groupby(["device", "block", "reference"])["slower_percent"].median()
    assert middle["pi4", 0, "arithmetic"] == pytest.approx(7, abs=1), "by the quickest runs"
    assert middle["pi4", 1, "large"] == pytest.approx(116, abs=2)
    assert middle["rack-1", 0, "large"] == pytest.approx(0, abs=1e-9), "nothing is remembered"
    assert set(paces[paces["usual"]]["device"]) == {"pi4"}
    own = paces[(paces["device"] == "pi4") & (paces["reference"] == "arithmetic")]
    assert own["at_s"].tolist() == pytest.approx(range(10))


def test_files_of_the_version_before_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(older(timing())))
    read = load_timing(path)
    results = read.results()
    assert results["trimmed_mean_ms"].notna().sum() == 7
    assert results[["raw_ms", "block_ci95_percent", "shift_percent"]].isna().all(axis=None)
    assert read.paces().empty


def test_labels_say_as_little_as_tells_results_apart(tmp_path: Path) -> None:
    data = timing()
    data["results"] = data["results"][:1] + data["results"][2:3]
    data["comparisons"] = []
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    assert load_timing(path).labels == ["small.onnx", "large.onnx"]
    data["results"][1]["model"] = "other/small.onnx"
    path.write_text(json.dumps(data))
    assert load_timing(path).labels == ["nets/small.onnx", "other/small.onnx"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "is not JSON: give a file"),
        ("[]", "is not a timing: give a file"),
        ('{"schema_version": 1, "models": []}', "schema version 1"),
        ('{"schema_version": 2, "kind": "timing", "results": [{}]}', "lacks"),
    ],
)
def test_what_is_no_timing_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=says) as caught:
        load_timing(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        load_timing(tmp_path / "none.json")


def test_reading_loads_no_torch(campaign: Path) -> None:
    program = (
        "import sys, esm_host\n"
        "assert 'pandas' not in sys.modules\n"
        "esm_host.load_run(sys.argv[1]).measurements()\n"
        "print('torch' in sys.modules, 'grpc' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(campaign)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_what_esm_host_offers() -> None:
    assert {"load_run", "load_timing"} <= set(dir(esm_host))
    with pytest.raises(AttributeError, match="nonsense"):
        esm_host.nonsense  # noqa: B018
