"""Arguments of another type than the Python interface takes: one line that says what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esm_host
from esm_host.typed import WrongTypeError, check_fields, typed
from esm_models.errors import ModelsError
from tests.host.fake_campaign import SPACE

SAMPLING = esm_host.SamplingSettings(initial=10, max_models=10, bins=2)
NOWHERE = "/nonexistent/run"
(ONE,) = SPACE.decode(SPACE.showcase()[:1])


def loop() -> esm_host.Loop:
    return esm_host.Loop(SPACE, SAMPLING, esm_host.TrainingSettings(predictor="ridge"))


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: esm_host.Loop("resnet"), "^space 'resnet' is of type str: give a search space such"),
    (lambda: esm_host.Loop(SPACE, 5), "^sampling 5 .*: give a SamplingSettings or None"),
    (lambda: esm_host.Loop(SPACE, draw_first=3), "^draw_first 3 .*: give a function or None"),
    (lambda: esm_host.Loop(SPACE, seconds=3), "^seconds 3 .*: give a function"),
    (lambda: loop().predict(ONE), "^architectures .*: give a list of architectures, also of a"),
    (lambda: loop().predict("k3e1"), "^architectures 'k3e1' .*: give a list of architectures"),
    (lambda: loop().tell(ONE, 1.0), "^architectures .*: give a list of architectures"),
    (lambda: loop().tell(5, 1.0), "^architectures 5 .*: give a list of architectures"),
    (lambda: loop().restore(5), "^rounds 5 .*: give a list, each entry a list of architectures"),
    (lambda: loop().restore([5]), r"^rounds \[5\] .*: give a list, each entry a list of arch"),
    (lambda: esm_host.time(5), r"^models 5 .*: give a model \(path, bytes, .*, a list of models"),
    (lambda: esm_host.time([5]), r"^models \[5\] has an entry .*: give a model"),
    (lambda: esm_host.time("m.onnx", 5), "^device 5 .*: give text or a list of texts"),
    (lambda: esm_host.time("m.onnx", runs="5"), "^runs '5' .*: give a whole number or None"),
    (lambda: esm_host.time("m.onnx", wait="no"), "^wait 'no' .*: give True or False"),
    (lambda: esm_host.time("m.onnx", inputs=5), "^inputs 5 .*: give values by input name or"),
    (lambda: esm_host.time("m.onnx", dims={"H": "x"}), "^dims .*: give a dictionary from names"),
    (lambda: esm_host.time("m.onnx", dims={5: 3}), "^dims {5: 3} has an entry of another type: "),
    (lambda: esm_host.Settings("a", contexts={5: 3}), "^contexts .* has an entry .* to values"),
    (lambda: esm_host.Settings("a", contexts=[5]), r"^contexts \[5\] is of type list: give a dict"),
    (lambda: esm_host.time("m.onnx", on_progress=5), "^on_progress 5 .*: give a function"),
    (lambda: esm_host.compare(5, 6), "^base 5 .*: give a timing or the path of its file"),
    (lambda: esm_host.compare([5], 6), r"^base \[5\] .*: give a timing or the path of its file"),
    (lambda: esm_host.profile("pi4", NOWHERE), "^settings 'pi4' .*: give a Settings"),
    (lambda: esm_host.resume(5), "^run 5 .*: give a campaign or a path"),
    (lambda: esm_host.resume(NOWHERE, max_models="3"), "^max_models '3' .*: give a whole number"),
    (lambda: esm_host.resume(NOWHERE, max_model=3), "max_model: did you mean 'max_models'"),
    (lambda: esm_host.write_report(5), "^source 5 .*: give a campaign, a timing, a search, "),
    (lambda: esm_host.export(5, [ONE], "x"), "^source 5 .*: give a campaign, a search space"),
    (lambda: esm_host.export(SPACE, ONE, "x"), "^architectures .*: give a list of architectures"),
    (lambda: esm_host.export(SPACE, [ONE], "x", formats="onnx"), "^formats 'onnx' .*: give a list"),
    (lambda: esm_host.torch_module(SPACE, 5), "^architecture 5 .*: give an architecture, a dict"),
    (lambda: esm_host.load_run(3), "^path 3 is of type int: give a path"),
    (lambda: esm_host.load_search(3), "^path 3 is of type int: give a path"),
    (lambda: esm_host.load_study(3), "^path 3 is of type int: give a path"),
    (lambda: esm_host.load_timing(3), "^path 3 is of type int: give a path"),
    (lambda: esm_host.example_model(5), "^name 5 .*: give text"),
    (lambda: esm_host.run_search("a", NOWHERE), "^settings 'a' .*: give a SearchSettings"),
    (lambda: esm_host.run_study(5, NOWHERE), "^study 5 .*: give a StudySettings or a path"),
    (lambda: esm_host.SearchSettings("runs/a"), "^runs 'runs/a' .*: give a list of texts"),
    (lambda: esm_host.SearchSettings((5,)), r"^runs \(5,\) .*: give a list of texts"),
    (lambda: esm_host.Settings("pi4", initial="5"), "^initial '5' .*: give a whole number"),
    (lambda: esm_host.Settings("pi4", spec=5), "^spec 5 .*: give a MeasureSpec"),
    (lambda: esm_host.Settings(5), "^device 5 .*: give text"),
    (lambda: esm_host.SpaceSettings(5), "^space 5 .*: give text"),
    (lambda: esm_host.TrainingSettings(method_options=5), "^method_options 5 .*: give a dictiona"),
    (lambda: esm_host.devices.info(5), "^name 5 .*: give text"),
    (lambda: esm_host.devices.doctor("local", "x"), "^seconds 'x' .*: give a number"),
    (lambda: esm_host.devices.group("all", "pi4"), "^members 'pi4' .*: give a list of texts"),
    (lambda: esm_host.devices.add("a", "b:1", ca=5), "^ca 5 .*: give a path or None"),
    (lambda: esm_host.team.campaigns(5), "^store 5 .*: give text"),
]


@pytest.mark.parametrize(("call", "said"), WRONG, ids=range(len(WRONG)))
def test_another_type_is_named(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(esm_host.UsageError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: loop().predict([5]),
        lambda: loop().restore([[5]]),
        lambda: esm_host.export(SPACE, [5], "x"),
        lambda: esm_host.load_space(5),
        lambda: esm_host.load_space("resnet", resolution="64"),
        lambda: SPACE.encode(ONE),
        lambda: SPACE.encode([5]),
        lambda: SPACE.build(5),
        lambda: esm_host.Architecture("resnet", [["k3e1"]]),
        lambda: esm_host.Architecture.from_text("resnet", 5),
    ],
)
def test_what_is_no_architecture_or_space_is_an_error_of_the_space(call: Any) -> None:
    with pytest.raises(ModelsError, match=r": (got|give|read)|; got"):
        call()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"runs": "5"}, "runs '5': give a whole number"),
        ({"trim": "5"}, "trim '5': give a number"),
        ({"provider": 5}, "provider 5: give the name"),
        ({"provider_options": 5}, "provider_options 5: give a dictionary"),
        ({"run_order": "sequential"}, "run_order 'sequential': give RunOrder.SEQUENTIAL or"),
    ],
)
def test_a_spec_of_another_type(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        esm_host.MeasureSpec(**fields)


def test_rounds_are_restored_from_any_form_of_their_architectures() -> None:
    begun = loop()
    asked = begun.ask()
    other = loop()
    other.restore([[a.to_json() if a.depth % 2 else a.to_text() for a in asked]])
    assert other.rounds == [asked]
    with pytest.raises(ModelsError, match="has 4 units"):
        other.restore([["k3e1"]])


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (lambda n: [ONE] * 2, "^draw_first draws .* twice: draw different architectures"),
        (lambda n: [ONE] * (n + 1), "^draw_first draws 11 architectures: draw 10 at most"),
        (lambda n: ["k3e1"], "^draw_first draws what is not in the space: resnet has 4 units"),
        (lambda n: [5], "^draw_first draws what is not in the space: .*got 5"),
    ],
)
def test_a_function_that_draws_something_else(drawn: Callable[[int], Any], said: str) -> None:
    own = esm_host.Loop(
        SPACE,
        SAMPLING,
        esm_host.TrainingSettings(predictor="ridge"),
        draw_first=lambda n, rng, bin_index, exclude: drawn(n),
    )
    with pytest.raises(esm_host.UsageError, match=said):
        own.ask()


Words = "Sequence[str] | None"


@typed
def everything(
    number: float,
    words: Words = None,
    path: str | Path = "",
    table: Mapping[str, int] | None = None,
    mixed: Sequence[int | str] = (),
    more: Any = None,
) -> float:
    """Return a number."""
    return number


def test_what_a_function_takes_reaches_it() -> None:
    taken: list[dict[str, Any]] = [
        {"number": np.float32(1)},
        {"number": True, "words": ("a",), "path": Path("x")},
        {"number": np.int64(1), "words": {"a": 1}.keys(), "table": {"a": np.int64(3)}},
        {"number": 1, "mixed": [1, "a"], "words": (word for word in "ab")},
        {"number": 1, "mixed": np.arange(3), "more": object()},
    ]
    for arguments in taken:
        assert everything(**arguments) == 1
    assert everything.__doc__ == "Return a number."


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": "1"},
        {"number": 1, "words": "ab"},
        {"number": 1, "words": b"ab"},
        {"number": 1, "words": [1]},
        {"number": 1, "table": {"a": "b"}},
        {"number": 1, "table": {1: 1}},
        {"number": 1, "mixed": [None]},
        {"number": 1, "mixed": {"a": 1}},
        {"number": 1, "path": b"x"},
    ],
)
def test_what_it_does_not_take_does_not(arguments: dict[str, Any]) -> None:
    with pytest.raises(WrongTypeError) as caught:
        everything(**arguments)
    assert isinstance(caught.value, TypeError)


@dataclass
class Fields:
    """Settings with a field."""

    many: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_are_checked_as_arguments_are() -> None:
    assert Fields([1]).many == [1]  # type: ignore[arg-type]
    for wrong in (1, ("a",), "a"):
        with pytest.raises(WrongTypeError, match=r"^many .*: give a list of whole numbers"):
            Fields(wrong)  # type: ignore[arg-type]
