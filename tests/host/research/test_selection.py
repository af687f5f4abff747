"""What selecting architectures by predicted latency costs."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis
from typer.testing import CliRunner

from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.errors import UsageError
from esm_host.evaluation.selection import (
    CandidateSets,
    by_falling_accuracy,
    hypervolume,
    pareto_front,
    reductions,
)
from esm_host.research import selection_plots
from esm_host.research.deviation import TYPICAL, Deviations, fit_deviations
from esm_host.research.selection import (
    Pair,
    SelectionSettings,
    at_tau,
    averaged,
    example,
    from_predictor,
    run_selection,
    tau_worth,
)

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
COSTS = {
    "none": 0.0,
    "skip_connect": 0.1,
    "avg_pool_3x3": 0.4,
    "nor_conv_1x1": 1,
    "nor_conv_3x3": 2,
}

# Few values, so that ties of every kind turn up.
Point = tuple[float, float, float]
POINTS = st.lists(
    st.tuples(*[st.integers(0, 5).map(float)] * 3), min_size=1, max_size=12
)  # latency, accuracy, predicted latency


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def brute_front(points: list[tuple[float, float]]) -> list[bool]:
    return [not any(beats(other, point) for other in points) for point in points]


@given(POINTS, st.data())
def test_reduction_is_what_the_best_as_fast_has_more(
    points: list[Point], data: st.DataObject
) -> None:
    latency, accuracy, _ = np.array(points).T
    selected = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(points), max_size=len(points)))
    )
    expected = [
        max(other[1] for other in points if other[0] <= point[0]) - point[1]
        for point, chosen in zip(points, selected, strict=True)
        if chosen
    ]
    assert reductions(latency, accuracy, selected.astype(bool)).tolist() == expected


def brute_area(points: list[tuple[float, float]], reference: float) -> float:
    """By unit columns: all latencies are whole."""
    return sum(
        max((accuracy for latency, accuracy in points if latency <= column), default=0) / 100
        for column in range(int(reference))
    )


def brute_losses(points: list[Point]) -> list[tuple[Point, float]]:
    """Of what is selected, each with what it lacks."""
    chosen = brute_front([(predicted, accuracy) for _, accuracy, predicted in points])
    return [
        (point, max(p[1] for p in points if p[0] <= point[0]) - point[1])
        for point, is_selected in zip(points, chosen, strict=True)
        if is_selected
    ]


def candidates_of(points: list[Point], reference: float = 7) -> tuple[CandidateSets, np.ndarray]:
    latency, accuracy, predicted = np.array(points).T
    order = by_falling_accuracy(accuracy)
    candidates = CandidateSets(latency[order][None], accuracy[order][None], reference)
    return candidates, predicted[order][None]


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    latency, accuracy, _ = np.array(points).T
    expected = brute_front(list(zip(latency, accuracy, strict=True)))
    assert pareto_front(latency, accuracy).tolist() == expected


@given(POINTS, st.integers(0, 7))
def test_hypervolume_is_the_area_under_the_front(points: list[Point], reference: int) -> None:
    latency, accuracy, _ = np.array(points).T
    expected = brute_area(list(zip(latency, accuracy, strict=True)), reference)
    assert hypervolume(latency, accuracy, reference) == pytest.approx(expected)


@given(POINTS)
def test_a_selection_loses_what_brute_force_finds(points: list[Point]) -> None:
    losses = brute_losses(points)
    front = brute_front([(latency, accuracy) for (latency, accuracy, _), _ in losses])
    verified = [loss for (_, loss), kept in zip(losses, front, strict=True) if kept]
    candidates, predicted = candidates_of(points)
    found = candidates.select(predicted)
    assert (found.selected[0], found.verified[0]) == (len(losses), len(verified))
    assert found.mra_all_percent[0] == pytest.approx(np.mean([loss for _, loss in losses]))
    assert found.mra_verified_percent[0] == pytest.approx(np.mean(verified))
    chosen = [(latency, accuracy) for (latency, accuracy, _), _ in losses]
    assert found.hypervolume[0] == pytest.approx(brute_area(chosen, 7))


@given(POINTS)
def test_perfect_predictions_lose_nothing(points: list[Point]) -> None:
    candidates, _ = candidates_of(points)
    found = candidates.select(candidates.latency)
    assert found.mra_all_percent[0] == found.mra_verified_percent[0] == 0
    assert found.hypervolume == candidates.hypervolume()
    assert found.selected == found.verified


@given(st.lists(POINTS.filter(lambda points: len(points) >= 5), min_size=1, max_size=4))
def test_sets_are_judged_each_by_itself(sets: list[list[Point]]) -> None:
    alone = [candidates_of(points[:5]) for points in sets]
    together = CandidateSets(
        np.concatenate([each.latency for each, _ in alone]),
        np.concatenate([each.accuracy_percent for each, _ in alone]),
        7,
    ).select(np.concatenate([predicted for _, predicted in alone]))
    for row, (each, predicted) in enumerate(alone):
        found = each.select(predicted)
        for name, values in vars(together).items():
            assert values[row] == pytest.approx(getattr(found, name)[0]), name


def test_a_set_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="falling accuracy"):
        CandidateSets(np.array([[1.0, 2.0]]), np.array([[50.0, 60.0]]), 2)
    with pytest.raises(ValueError, match="predictions are"):
        CandidateSets(np.array([[1.0, 2.0]]), np.array([[60.0, 50.0]]), 2).select(np.zeros((1, 3)))


@pytest.mark.parametrize("shape", [TYPICAL, Deviations((0.2, 0.8), (3.0, -1.0), (5.0, 0.1))])
@pytest.mark.parametrize("std", [0.0, 0.3, 1.0])
def test_drawn_deviations_have_the_asked_standard_deviation(shape: Deviations, std: float) -> None:
    drawn = shape.draw(np.random.default_rng(0), (200, 1000), std)
    assert drawn.shape == (200, 1000)
    assert drawn.std() == pytest.approx(std, rel=0.02)
    assert drawn.mean() == pytest.approx(0, abs=0.02)


def test_deviations_are_fitted_in_their_own_unit() -> None:
    true = Deviations((0.7, 0.3), (0.0, 2.0), (1.0, 6.0))
    rng = np.random.default_rng(1)
    which = rng.random(20_000) < 0.7
    values = np.where(which, rng.normal(0, 1, 20_000), rng.normal(2, 6, 20_000))
    fitted = fit_deviations(values)
    assert fitted.std == pytest.approx(true.std, rel=0.05)
    for name in ("weights", "stds"):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=0.15)
    drawn = fitted.draw(rng, (20_000,))
    assert kurtosis(drawn) == pytest.approx(kurtosis(values), rel=0.3)
    with pytest.raises(ValueError, match="give more"):
        fit_deviations(np.ones(10))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 cells, latencies almost the sum of their operations'; one of them is missing."""
    rng = np.random.default_rng(0)
    every = list(product(OPS, repeat=6))
    cells = [every[i] for i in rng.choice(len(every), 700, replace=False)]
    cost = np.array([sum(COSTS[op] for op in cell) for cell in cells])
    latency = 1 + cost + rng.normal(0, 0.1, len(cells))
    latency[0] = 0.1
    frame = pd.DataFrame(
        {
            "arch": [
                "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*cell)  # as the benchmark has it
                for cell in cells
            ],
            "lat_ms_board": latency,
            "acc_toys": np.clip(90 - 60 * np.exp(-cost / 3) + rng.normal(0, 2, len(cells)), 0, 100),
        }
    )
    path = tmp_path_factory.mktemp("selection") / "cells.parquet"
    frame.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def table(path: Path) -> LatencyTable:
    return read_benchmark(path)


PAIR = Pair("board", "toys")
SMALL = SelectionSettings(sizes=(50, 200), simulations=60, stds=(0.0, 0.2, 0.5, 1.0))


@pytest.fixture(scope="module")
def results(table: LatencyTable) -> pd.DataFrame:
    return run_selection(table, [PAIR], SMALL)


def test_worse_predictors_and_fewer_candidates_cost_more(results: pd.DataFrame) -> None:
    assert set(results["candidates"]) == {50, 200, 700}
    for _, rows in results.groupby("candidates"):
        assert rows["kendall_tau"].is_monotonic_decreasing
        assert rows["hypervolume"].is_monotonic_decreasing
        assert (rows["mra_all_percent"].iloc[0], rows["kendall_tau"].iloc[0]) == (0, 1)
        later = rows.iloc[1:]
        assert (later["mra_verified_percent"] < later["mra_all_percent"]).all()
        assert (later["verified"] < later["selected"]).all()
    perfect = results[results["deviation_std"] == 0].sort_values("candidates")
    assert perfect["hypervolume"].is_monotonic_increasing
    assert perfect["hypervolume"].iloc[-1] == pytest.approx(perfect["best_hypervolume"].iloc[-1])


def test_the_same_seed_gives_the_same_numbers(table: LatencyTable, results: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(run_selection(table, [PAIR], SMALL), results)


def test_what_a_tau_costs_is_read_between_the_simulated(results: pd.DataFrame) -> None:
    whole = results[results["candidates"] == 700]
    second, third = whole["kendall_tau"].iloc[1:3]
    least, most = whole["mra_all_percent"].iloc[1:3]
    assert at_tau(results, second, "mra_all_percent") == pytest.approx(least)
    assert least < at_tau(results, (second + third) / 2, "mra_all_percent") < most
    assert np.isnan(at_tau(results, 0.01, "mra_all_percent"))
    assert 0 < tau_worth(results, 50) < tau_worth(results, 200) < 1
    assert np.isnan(tau_worth(results, 51))


@pytest.mark.parametrize("name", ["ridge", pytest.param("mlp", marks=pytest.mark.predictors)])
def test_a_predictor_that_learns_loses_less_the_more_it_is_trained(
    table: LatencyTable, name: str
) -> None:
    chosen = SelectionSettings(repeats=2, encoding="operation-one-hot")
    little, much = (from_predictor(table, PAIR, name, n, chosen).iloc[0] for n in (10, 300))
    assert much["kendall_tau"] > max(0.85, little["kendall_tau"])
    assert much["hypervolume"] > little["hypervolume"]
    assert much["deviation_std"] < little["deviation_std"]
    assert (much["source"], much["train_samples"], much["selections"]) == (name, 300, 2)


def test_the_example_is_one_selection(table: LatencyTable) -> None:
    frame = example(table, PAIR, 0.5)
    assert len(frame) == 699  # one latency is missing
    expected = pareto_front(frame["predicted_ms"], frame["accuracy_percent"])
    assert (frame["selected"] == expected).all()
    assert frame.loc[frame["verified"], "selected"].all()
    std = (frame["predicted_ms"] - frame["latency_ms"]).std() / frame["latency_ms"].std()
    assert std == pytest.approx(0.5, rel=0.1)


def test_charts_are_drawn_of_what_the_study_gives(
    table: LatencyTable, results: pd.DataFrame
) -> None:
    averages, one = averaged(results), example(table, PAIR)
    for chart, column in (
        (selection_plots.reduction(averages[averages["candidates"] == 700]), "mra_percent"),
        (selection_plots.reduction_by_pair(results), "mra_verified_percent"),
        (selection_plots.hypervolume(averages), "hypervolume"),
        (selection_plots.selection(one, "predicted_ms"), "accuracy_percent"),
        (selection_plots.selection(one, "latency_ms"), "accuracy_percent"),
    ):
        assert column in chart.to_json()


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["selection", *map(str, arguments), "--parallel", "1"])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_table_and_writes_a_folder(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    options = ("--pair", "board:toys", "--sizes", "50,200", "--simulations", 20)
    real = ("--predictor", "mlp:40", "--repeats", 1)
    code, stdout, stderr = run(path, *options, *real, "--output", out)
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert lines[0].split()[:3] == ["predictor", "sd", "tau"]
    assert lines[1].split()[:3] == ["simulation", "0.00", "1.000"]
    assert any(line.startswith("mlp:40") for line in lines)
    assert "50 measured candidates are as good as 700 predicted at tau" in stdout
    frame = pd.read_parquet(out / "selection.parquet")
    assert len(frame) == 3 * 11 + 1
    assert {file.suffix for file in out.iterdir()} == {".parquet", ".png"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--pair", "board"), "give DEVICE:TASK"),
        (("--pair", "boat:toys"), "unknown device 'boat'"),
        (
            ("--pair", "board:tots"),
            "unknown task 'tots' of cells: did you mean 'toys'? choose toys",
        ),
        (("--pair", "board:toys", "--sizes", "10,x"), "'x' is not a number"),
        (("--pair", "board:toys", "--sizes", "701"), "has 1 to 700"),
        (("--pair", "board:toys", "--predictor", "mlp"), "give NAME:SAMPLES"),
        (("--pair", "board:toys", "--predictor", "mpl:9"), "unknown predictor 'mpl'"),
        (("--pair", "board:toys", "--predictor", "mlp:699"), "give 1 to 698 training samples"),
        (("--pair", "board:toys", "--encoding", "fff"), "unknown encoding 'fff'"),
    ],
)
def test_wrong_input_is_one_line(path: Path, options: tuple[str, ...], text: str) -> None:
    code, stdout, stderr = run(path, *options)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert text in stderr


def test_a_table_without_accuracies_says_so(table: LatencyTable) -> None:
    bare = LatencyTable("bare", table.space, table.codes, table.latency_ms, {})
    with pytest.raises(UsageError, match="has no accuracies"):
        run_selection(bare, [PAIR], SMALL)
