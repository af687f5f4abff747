"""What every way to search does."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

from esm_host.errors import UsageError
from esm_host.search.costs import NetworkCost
from esm_host.search.genes import GeneEncoding, distinct
from esm_host.search.method import SearchMethod
from esm_host.search.methods import METHODS, make_method
from esm_host.search.methods.single_weight import SingleWeight
from esm_host.search.methods.with_pymoo import PymooSearch
from esm_host.search.problem import Candidates, Limit, Objective, Problem
from esm_models.space import Codes
from esm_models.spaces import load_space
from tests.host.search.cells import CELLS, Quality

COST = NetworkCost(CELLS)


def posed(*limits: Limit) -> Problem:
    objectives = [Objective("flops"), Objective("quality", maximise=True)]
    return Problem(CELLS, [COST, Quality()], objectives, limits)


def method_of(name: str, seed: int = 0) -> SearchMethod:
    """As small as will do."""
    if name == "single-weight":
        return SingleWeight(weights=9, population=200, generations=20, seed=seed)
    if name == "exhaustive":
        return make_method(name, CELLS)
    return PymooSearch(name, population=80, generations=40, seed=seed)


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def front_of(name: str) -> Candidates:
    """Front of a method without limits, searched once."""
    return method_of(name).search(posed()).front


def as_set(found: Candidates) -> set[bytes]:
    return {row.tobytes() for row in found.codes}


def test_finds_nearly_all_of_the_front(name: str) -> None:
    everything, found = front_of("exhaustive"), front_of(name)
    assert len(as_set(found) & as_set(everything)) >= 0.8 * len(everything)


def test_nothing_on_its_front_is_beaten_or_double(name: str) -> None:
    found = front_of(name)
    assert len(found.front()) == len(found) == len(distinct(found.codes))
    assert (np.diff(found.values["flops"]) >= 0).all()


def test_the_same_seed_finds_the_same(name: str) -> None:
    one, other = (method_of(name, seed=3).search(posed()).front for _ in range(2))
    np.testing.assert_array_equal(one.codes, other.codes)


def test_limits_are_kept(name: str) -> None:
    problem = posed(Limit("flops", 5e7), Limit("quality", 6.0, at_least=True))
    found = method_of(name).search(problem).front
    assert len(found)
    assert (found.values["flops"] <= 5e7).all()
    assert (found.values["quality"] >= 6).all()


def test_where_no_limit_can_be_kept_it_tells_what_comes_closest(name: str) -> None:
    outcome = method_of(name).search(posed(Limit("flops", 1.0)))
    assert not len(outcome.front)
    least = COST(np.concatenate(list(GeneEncoding(CELLS).everything())))["flops"].min()
    assert outcome.closest.values["flops"][0] == least


def test_looks_at_what_it_is_to_begin_with(name: str) -> None:
    (best,) = CELLS.encode([CELLS.extremes()[1]])
    found = method_of(name).search(posed(), start=best[None]).front
    assert best.tobytes() in as_set(found)


def test_one_objective_has_one_best(name: str) -> None:
    problem = Problem(CELLS, [COST, Quality()], [Objective("quality", maximise=True)])
    if name in ("nsga3", "sms-emoa"):
        with pytest.raises(UsageError, match="nsga2"):
            method_of(name).search(problem)
        return
    found = method_of(name).search(problem).front
    assert set(found.values["quality"].tolist()) == {found.values["quality"].max()}
    assert CELLS.decode(found.codes[:1]) == [CELLS.extremes()[1]]


def test_three_objectives(name: str) -> None:
    objectives = [Objective("flops"), Objective("memory_bytes"), Objective("quality", True)]
    found = method_of(name).search(Problem(CELLS, [COST, Quality()], objectives)).front
    assert found.costs.shape == (len(found), 3)
    assert len(found.front()) == len(found)


def test_what_is_not_known_of_an_architecture_makes_it_unfit(name: str) -> None:
    class Unknown(Quality):
        def __call__(self, codes: Codes) -> Mapping[str, np.ndarray]:
            values = super().__call__(codes)["quality"]
            return {"quality": np.where(codes[:, 0, 0] == 4, np.nan, values)}

    objectives = [Objective("flops"), Objective("quality", maximise=True)]
    found = method_of(name).search(Problem(CELLS, [COST, Unknown()], objectives)).front
    assert (found.codes[:, 0, 0] != 4).all()


def test_the_default_lists_small_spaces_only() -> None:
    assert type(make_method(None, CELLS)).__name__ == "Exhaustive"
    assert isinstance(make_method(None, load_space("resnet")), PymooSearch)
    space = load_space("resnet", resolution=32)
    problem = Problem(space, [NetworkCost(space)], [Objective("flops")])
    with pytest.raises(UsageError, match="choose another method"):
        make_method("exhaustive", space).search(problem)
    with pytest.raises(UsageError, match="nsga2"):
        make_method("nsga", CELLS)


def test_pymoo_is_not_asked_twice_of_one_architecture() -> None:
    quality = Quality()
    objectives = [Objective("flops"), Objective("quality", maximise=True)]
    outcome = method_of("nsga2").search(Problem(CELLS, [COST, quality], objectives))
    assert quality.asked == outcome.evaluations < 80 * 40


def test_the_preset_scores_what_the_paper_says() -> None:
    outcome = SingleWeight(weights=2).search(posed())
    assert outcome.evaluations == 2 * (1000 + 50 * 750)


def test_a_network_costs_what_its_graph_does() -> None:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    encoding = GeneEncoding(space)
    codes = encoding.to_codes(encoding.random(5, np.random.default_rng(0)))
    found = NetworkCost(space)(codes)
    for row, architecture in enumerate(space.decode(codes)):
        net, _ = space.trace(architecture)
        numbers = sum(int(np.prod(tensor.dims)) for tensor in net.initializers)
        assert found["parameters"][row] == numbers
        assert found["memory_bytes"][row] > 4 * numbers


def test_none_cost_nothing() -> None:
    found = NetworkCost(CELLS)(CELLS.encode([]))
    assert {name: len(values) for name, values in found.items()} == {
        "flops": 0,
        "parameters": 0,
        "memory_bytes": 0,
    }
