"""What users want, in their words."""

import json
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from esm_host.encoding import make_encoder
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.parallel import parallel
from esm_host.predictors import make_predictor
from esm_host.sampling.random import RandomSampler
from esm_host.search.objectives import parse_objective, read_measure
from esm_host.search.problem import Limit
from esm_host.search.settings import SearchSettings
from esm_models.space import Codes
from esm_models.spaces import load_space
from tests.helpers import depth_bins

SPACE = load_space("resnet", resolution=32, width_mult=0.25)


def drawn(n: int) -> Codes:
    sampler = RandomSampler(SPACE, depth_bins(SPACE, 3))
    return SPACE.encode(sampler.sample(n, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("text", "name", "source", "maximise"),
    [
        ("latency", "latency", "", False),
        ("flops", "flops", "", False),
        ("flops:max", "flops", "", True),
        ("params:min", "params", "", False),
        ("accuracy=t.parquet:cifar10", "accuracy", "t.parquet:cifar10", True),
        ("energy=e.py:joules:min", "energy", "e.py:joules", False),
        ("accuracy=C:/x.py:f", "accuracy", "C:/x.py:f", True),
    ],
)
def test_reads_what_is_wanted(text: str, name: str, source: str, maximise: bool) -> None:
    spec = parse_objective(text)
    assert (spec.name, spec.source, spec.maximise) == (name, source, maximise)


@pytest.mark.parametrize(
    "text", ["", "speed", "accuracy", "flops=x.py:f", "accuracy=", "a b=x.py:f"]
)
def test_says_what_can_be_wanted(text: str) -> None:
    with pytest.raises(UsageError, match=r"^objectives.*: (choose|give) "):
        parse_objective(text)


def test_latency_is_never_maximised() -> None:
    said = "^objectives 'latency:max': latency is minimised, write latency$"
    with pytest.raises(UsageError, match=said):
        parse_objective("latency:max")


def test_a_table_tells_what_it_lists(tmp_path: Path) -> None:
    codes = drawn(10)
    texts = [json.dumps(a.to_json()) for a in SPACE.decode(codes)]
    frame = pd.DataFrame({"architecture": texts, "acc_cifar": np.arange(10.0)})
    for path in (tmp_path / "t.parquet", tmp_path / "t.csv"):
        frame[:8].to_parquet(path) if path.suffix == ".parquet" else frame[:8].to_csv(
            path, index=False
        )
        measure = read_measure(parse_objective(f"accuracy={path}:cifar"), SPACE)
        np.testing.assert_array_equal(measure(codes)["accuracy"], [*range(8), np.nan, np.nan])
        with pytest.raises(UsageError, match="choose acc_cifar"):
            read_measure(parse_objective(f"accuracy={path}:imagenet"), SPACE)
        with pytest.raises(DatasetError, match="not a table of nasbench201"):
            read_measure(parse_objective(f"accuracy={path}:cifar"), load_space("nasbench201"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "b", "c"], "no numbers in its column 'x'"),
        ([1.0, 2.0, 3.0], "several values of 'x' for one architecture, in row 1"),
        ([], "lists no architecture"),
    ],
)
def test_says_what_is_wrong_with_a_table(values: list, words: str, tmp_path: Path) -> None:
    first, second = SPACE.decode(drawn(2))
    texts = [json.dumps(a.to_json()) for a in (first, second, first)]
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"architecture": texts[: len(values)], "x": values})
    frame.to_csv(path, index=False)
    with pytest.raises(EsmError, match=words):
        read_measure(parse_objective(f"accuracy={path}:x"), SPACE)


def test_a_function_is_asked_once_of_each(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "asked = []\n"
        "def depth(architectures):\n"
        "    asked.extend(architectures)\n"
        "    return [a.depth for a in architectures]\n"
        "def one(architectures):\n"
        "    return 1.0\n"
        "def broken(architectures):\n"
        "    raise RuntimeError('no GPU')\n"
    )
    codes = drawn(5)
    measure = read_measure(parse_objective(f"accuracy={path}:depth"), SPACE)
    expected = [a.depth for a in SPACE.decode(codes)]
    for _ in range(2):
        assert measure(np.concatenate([codes, codes]))["accuracy"].tolist() == expected * 2
    assert len(measure._function.__globals__["asked"]) == 5
    with parallel(2):  # in other processes, which do not have the file
        there = read_measure(parse_objective(f"accuracy={path}:depth"), SPACE)(codes)
    assert there["accuracy"].tolist() == expected
    with pytest.raises(EsmError, match="a number for each"):
        read_measure(parse_objective(f"accuracy={path}:one"), SPACE)(codes)
    with pytest.raises(EsmError, match="RuntimeError: no GPU"):
        read_measure(parse_objective(f"accuracy={path}:broken"), SPACE)(codes)
    with pytest.raises(UsageError, match="unknown function 'other'"):
        read_measure(parse_objective(f"accuracy={path}:other"), SPACE)
    path.write_text("1/0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        read_measure(parse_objective(f"accuracy={path}:depth"), SPACE)


def test_a_fitted_predictor_tells_of_its_encoding(tmp_path: Path) -> None:
    codes = drawn(30)
    encoder = make_encoder("fcc", SPACE)
    encodings = encoder.encode_codes(codes)
    predictor = make_predictor("mlp", encoder).fit(encodings, 1 + np.arange(30.0))
    path = tmp_path / "accuracy.onnx"
    path.write_bytes(predictor.to_onnx())
    measure = read_measure(parse_objective(f"accuracy={path}:fcc"), SPACE)
    np.testing.assert_allclose(measure(codes)["accuracy"], predictor.predict(encodings), rtol=1e-4)
    with pytest.raises(UsageError, match="columns"):
        read_measure(parse_objective(f"accuracy={path}:one-hot"), SPACE)
    for shape, words in (([1, len(encoder)], "is not a predictor"), (["n", "k"], None)):
        model = onnx.load_from_string(predictor.to_onnx())
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims, shape, strict=True):
            setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)
        onnx.save(model, path)
        if words is None:
            read_measure(parse_objective(f"accuracy={path}:fcc"), SPACE)
            continue
        with pytest.raises(UsageError, match=words):
            read_measure(parse_objective(f"accuracy={path}:fcc"), SPACE)
    path.write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="not an ONNX model"):
        read_measure(parse_objective(f"accuracy={path}:fcc"), SPACE)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.py:f", "no file"),
        ("nowhere.py", "name the column"),
        ("{here}:f", "is no .parquet"),
    ],
)
def test_says_what_is_wrong_with_a_source(source: str, words: str, tmp_path: Path) -> None:
    here = tmp_path / "a.txt"
    here.touch()
    with pytest.raises(UsageError, match=words):
        read_measure(parse_objective(f"accuracy={source.format(here=here)}"), SPACE)


def test_limits_of_devices_and_of_all_else() -> None:
    settings = SearchSettings(
        ("a", "b"),
        ("accuracy=t.csv:x", "flops"),
        max_latency_ms=(20,),
        limits=("accuracy>=70", "flops <= 3e8", "memory<=1e6"),
    )
    assert settings.all_limits == [
        Limit("a.latency_at_most_ms", 20),
        Limit("b.latency_at_most_ms", 20),
        Limit("accuracy", 70, at_least=True),
        Limit("flops", 3e8),
        Limit("memory_bytes", 1e6),
    ]
    assert SearchSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runs": ()}, "folder of a campaign"),
        ({"runs": ("a", "a")}, "twice"),
        ({"max_latency_ms": (1.0, 2.0)}, "one for all, or one for each"),
        ({"max_latency_ms": (0.0,)}, "above 0"),
        ({"max_latency_ms": (float("nan"),)}, "above 0"),
        ({"probability": 1.0}, "^probability 1: give a share"),
        ({"measure": -1}, "^measure -1"),
        ({"batch": 0}, "^batch 0"),
        ({"limits": ("accuracy>=70",)}, "of flops, "),
        ({"limits": ("flops=3",)}, "NAME<=NUMBER"),
        ({"limits": ("flops<=x",)}, "NAME<=NUMBER"),
        ({"limits": ("latency<=3",)}, "NAME<=NUMBER"),
        ({"objectives": ("flops", "flops:max")}, "twice"),
    ],
)
def test_impossible_settings_are_refused(values: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SearchSettings(**{"runs": ("a",), **values})
