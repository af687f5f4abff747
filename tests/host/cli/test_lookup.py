"""Lookup tables: what predicts with them, and ``esm-host lookup``, which measures them."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from esm_host.cli.app import app
from esm_host.encoding import make_encoder
from esm_host.encoding.cost import PartsEncoder
from esm_host.errors import DatasetError, DeviceError, MismatchError, UsageError
from esm_host.predictors import make_predictor
from esm_host.predictors.lookup import LookupBiasPredictor, LookupPredictor, neighbours
from esm_host.predictors.lookup_file import load_lookup_table
from esm_host.timing import timing_spec
from esm_host.timing.parts import BLOCK_PARTS, time_parts
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_models.spaces import SPACES, load_space
from esm_protos.messages import (
    Block,
    BlockResult,
    Failure,
    FailureKind,
    Holder,
    MeasureSpec,
    Model,
)
from tests.host.own_spaces import Scoped
from tests.host.paced import SMALL_MS, PacedProfiler

ROOT = Path(__file__).parents[3]
SCOPED = f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:Scoped"
SPEC = MeasureSpec(runs=20)


def esm_host_lookup(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lookup", *(str(argument) for argument in arguments)])


# Neighbours and the table of operations


@pytest.mark.parametrize("name", SPACES)
def test_neighbours_differ_from_the_base_in_one_thing(name: str) -> None:
    space = load_space(name)
    codes = neighbours(space)
    base, *others = space.decode(codes)
    space.encode([base, *others])  # valid
    assert len({a.key for a in (base, *others)}) == len(codes)
    for other in others:
        pairs = [
            *zip(base.units, other.units, strict=True),
            *zip(base.unit_choices, other.unit_choices, strict=True),
            (base.resolution, other.resolution),
            (base.choice, other.choice),
            (base.contexts, other.contexts),
        ]
        assert sum(one != two for one, two in pairs) == 1


def test_neighbours_of_nasbench201_are_the_papers_25() -> None:
    codes = neighbours(load_space("nasbench201"))
    assert codes.shape == (25, 1, 6)
    assert (codes[0] == 1).all(), "skip_connect: a network of none is no network"


@pytest.mark.parametrize("name", ["nasbench201", "fbnet", "mobilenetv3"])
def test_neighbours_teach_an_additive_space_exactly(name: str) -> None:
    space = load_space(name)
    encoder = make_encoder("operation-one-hot", space)
    truth = np.random.default_rng(0).uniform(0.1, 1, len(encoder))
    x = encoder.encode_codes(neighbours(space))
    # Not what deeper and shallower units have in common with both: all depths' blocks count.
    unseen = np.random.default_rng(1).integers(0, len(space.options), (50, *space.code_shape))
    base = neighbours(space)[0]
    unseen = np.where(base < 0, -1, unseen).astype(np.int16)
    test = encoder.encode_codes(unseen)
    predicted = LookupPredictor().fit(x, 1 + x @ truth).predict(test)
    np.testing.assert_allclose(predicted, 1 + test @ truth, rtol=1e-6)


def test_what_was_never_seen_to_vary_has_no_effect() -> None:
    x = np.array([[0, 1, 0], [1, 1, 0], [2, 1, 0]])
    predictor = LookupPredictor().fit(x, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(predictor.predict([[1, 9, 7]]), [2])


# Bias correction


def test_bias_correction_finds_slope_and_offset() -> None:
    rng = np.random.default_rng(0)
    counts, table = rng.integers(0, 5, (30, 6)), rng.uniform(0.1, 1, 6)
    predictor = LookupBiasPredictor(table)
    measured = 0.8 * (counts @ table) + 3
    predicted = predictor.fit(counts[:10], measured[:10]).predict(counts)
    np.testing.assert_allclose(predicted, measured)
    assert (predictor.slope_, predictor.offset_ms_) == pytest.approx((0.8, 3))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"esm-host lookup --json FILE and give table_ms"),
        ([1.0, 2.0], "encoding 'parts'"),
        ([1.0, 2.0, np.nan], "finite"),
        ([1.0, 2.0, -1.0], "negative"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LookupBiasPredictor(table).fit([[1, 0, 2]], [1.0])


def test_by_name() -> None:
    encoder = make_encoder("parts", Scoped())
    table = np.ones(len(encoder))
    predictor = make_predictor("lookup-bias", encoder, table_ms=table)
    assert predictor.get_params()["table_ms"] is table


# Timing parts


def fake_latency(model: Model) -> float:
    assert isinstance(model.data, bytes)
    return len(model.data) / 1e3


def test_blocks_of_another_pace_are_brought_to_one() -> None:
    """Each later block is slower by a tenth; the parts' latencies do not show it."""
    parts = PartsEncoder(load_space("resnet", resolution=32, width_mult=0.25)).parts
    device = FakeProfiler(fake_latency, pace=lambda number: 1.1**number)
    told: list[tuple[int, int]] = []
    times = time_parts(device, parts, SPEC, on_block=lambda *done: told.append(done))
    assert [time.part for time in times] == [*parts]
    latency = np.array([time.latency_ms for time in times])
    true = np.array([len(part.build()) / 1e3 for part in parts])
    ratio = latency / true
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert len(told) == -(-(len(parts) - 2) // BLOCK_PARTS) > 1
    assert all(one[0] < other[0] for one, other in pairwise(told))
    assert told[-1] == (len(parts), len(parts))


def test_a_device_that_knows_its_usual_pace_needs_no_common_parts() -> None:
    """Blocks are slower by turns, all references with them; latencies are those of usual blocks."""
    parts = PartsEncoder(load_space("resnet", resolution=32, width_mult=0.25)).parts

    class Slower(PacedProfiler):
        def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
            factor = 1.0 + 0.06 * (len(self.blocks) % 2)
            result = super().answer(block, on_progress)
            taken = [
                tuple(replace(m, latency_ns=(m.latency_ns * factor).astype(np.int64)) for m in each)
                for each in (result.measurements, result.references)
            ]
            assert result.usual is not None
            usual = replace(result.usual, spread=0.05 * np.eye(4))
            return replace(result, measurements=taken[0], references=taken[1], usual=usual)

    spec = replace(SPEC, references=True)
    times = time_parts(Slower(), parts, spec)
    latency = np.array([time.latency_ms for time in times])
    np.testing.assert_allclose(latency, SMALL_MS, rtol=0.02)
    assert all(time.interval > 0 for time in times)


def test_a_part_that_fails_ends_it() -> None:
    device = FakeProfiler(lambda model: Failure(FailureKind.UNSUPPORTED_OP, "no such operator"))
    with pytest.raises(DeviceError, match=r"part \S+ failed with unsupported_op: no such"):
        time_parts(device, PartsEncoder(Scoped()).parts, SPEC)


# The command, and the file


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a real agent."""
    path = tmp_path_factory.mktemp("lookup") / "table.json"
    result = esm_host_lookup(
        "--device", "local", "--space", SCOPED, "--resolution", 32, "--runs", 41, "--json", path
    )
    assert result.exit_code == 0, result.output
    assert f"10 parts written to {path}" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        *("part", "input", "operators", "mflops", "latency_ms", "interval_%")
    ]
    assert len(lines) == 11
    assert sum(line.startswith("unit1.block2 k3 ") for line in lines) == 1
    return path


def test_the_file_is_as_documented(table: Path) -> None:
    data = json.loads(table.read_text())
    text = (ROOT / "docs" / "lookup.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert documented == {*data, *data["context"], *data["parts"][0]}
    context = data["context"]
    assert context["space"] == Scoped(resolution=32).settings()
    assert context["spec"] == timing_spec(runs=41).to_json()
    assert context["spec"]["references"] is True
    assert context["device"]["name"] == "local"
    assert all(entry["latency_ms"] > 0 and entry["runs"] >= 41 for entry in data["parts"])


def test_the_table_serves_the_predictor(table: Path) -> None:
    encoder = make_encoder("parts", Scoped(resolution=32))
    table_ms = load_lookup_table(table, encoder)
    assert table_ms.shape == (len(encoder),) == (10,)
    x = encoder.encode_codes(neighbours(encoder.space))
    latency_ms = 0.5 * x @ table_ms + 0.1
    predictor = make_predictor("lookup-bias", encoder, table_ms=table_ms).fit(x, latency_ms)
    np.testing.assert_allclose(predictor.predict(x), latency_ms, rtol=1e-5)


def test_a_table_of_something_else_is_refused(table: Path, tmp_path: Path) -> None:
    def encoder(**settings: Any) -> PartsEncoder:
        return PartsEncoder(Scoped(**{"resolution": 32, **settings}))

    for settings in ({"resolution": 64}, {"width_mult": 0.5}, {"batch": 2}, {"dtype": "int8"}):
        with pytest.raises(MismatchError, match=f"resolution 32.*{next(iter(settings))}"):
            load_lookup_table(table, encoder(**settings))
    with pytest.raises(UsageError, match="encoding 'parts', not 'fcc'"):
        load_lookup_table(table, make_encoder("fcc", Scoped(resolution=32)))
    with pytest.raises(UsageError, match="cannot read"):
        load_lookup_table(tmp_path / "none.json", encoder())
    data = json.loads(table.read_text())
    for change, message in (
        ({"kind": "timing"}, "not a lookup table"),
        ({"schema_version": 9}, "schema version 9"),
        ({"parts": [{}]}, "is not a complete lookup table"),
    ):
        (tmp_path / "t.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(DatasetError, match=message):
            load_lookup_table(tmp_path / "t.json", encoder())
    (tmp_path / "t.json").write_text(json.dumps({**data, "parts": data["parts"][1:]}))
    with pytest.raises(MismatchError, match="lacks 1 part of"):
        load_lookup_table(tmp_path / "t.json", encoder())
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DatasetError, match="is not JSON"):
        load_lookup_table(tmp_path / "t.json", encoder())


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--space", "resnet9"], 2, "unknown search space"),
        (["--dtype", "int4"], 2, "unknown dtype 'int4': did you mean 'int8'? choose float32, int8"),
        (["--runs", 5, "--precision", 1], 2, "--runs"),
        (
            ["--space", f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:TwoBefore"],
            2,
            "cannot be listed",
        ),
        (["--space", SCOPED, "--json", "/no/such/folder/t.json"], 2, "there is no folder"),
        (["--space", SCOPED, "--no-wait"], 75, "omit --no-wait to wait"),
    ],
)
def test_wrong_usage_is_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[object], code: int, word: str
) -> None:
    busy = FakeProfiler(fake_latency, holder=Holder("anna", "profile resnet", "client", 1.0))
    monkeypatch.setattr(devices, "connect", lambda device: busy)
    monkeypatch.delenv("ESM_DEVICE", raising=False)
    result = esm_host_lookup(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert word in line


def test_the_space_of_the_docs_has_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(fake_latency))
    space, out = f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:PlainNet", tmp_path / "plain.json"
    options = ["--space", space, "--resolution", 32, "--runs", 5, "--json", out]
    result = esm_host_lookup(*options)
    assert result.exit_code == 0, result.output
    own = load_space(space, resolution=32)
    encoder = make_encoder("parts", own)
    latency_ms = encoder.encode(own.extremes()) @ load_lookup_table(out, encoder)
    assert 0 < latency_ms[0] < latency_ms[1]


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(fake_latency))
    result = esm_host_lookup("--space", SCOPED, "--runs", 20, "--json", "-", "--quiet")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["parts"]) == 10
    assert result.stderr == ""


def test_a_table_is_of_its_session_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profiler = FakeProfiler(lambda model: 1.0)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    out = tmp_path / "table.json"
    asked = ["--space", SCOPED, "--resolution", 32, "--runs", 20]
    done = esm_host_lookup(*asked, "--opt-level", "basic", "--json", out)
    assert done.exit_code == 0, done.output
    assert {block.spec.session.opt_level for block in profiler.blocks} == {"basic"}
    assert json.loads(out.read_text())["context"]["spec"]["opt_level"] == "basic"
    refused = esm_host_lookup(*asked, "--free-dim", "N=1")
    assert refused.exit_code == 2
    assert "--free-dim: unknown dimension 'N': the inputs name none" in refused.stderr
