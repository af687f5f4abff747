"""Architectures as ONNX files, torch modules and JSON, against each other and as users get them."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

import esm_host
from esm_host.cli.app import app
from esm_host.exporting.torch_module import build, weights_of
from esm_host.exporting.torch_source import torch_source
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space
from esm_protos.weights import draw_weights
from tests.models import operators

ROOT = Path(__file__).parents[3]
EVERYTHING = f"{Path(__file__).parents[1] / 'export_spaces.py'}:Everything"
FOREIGN = f"{Path(__file__).parents[1] / 'export_spaces.py'}:Foreign"
PLAIN = f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:PlainNet"

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_models.spaces.decoder.DecoderSpace.vocabulary", 500)


def small(name: str, **settings: Any) -> SearchSpace:
    if name == EVERYTHING:
        return load_space(name, batch=2, **settings)
    return load_space(name, **{"resolution": 64, "width_mult": 0.25, "batch": 2, **settings})


def some(space: SearchSpace) -> list[Architecture]:
    """The ends of a space and two random ones between."""
    bins = DepthBins(space.min_depth, space.max_depth, 1)
    sampler = RandomSampler(space, bins)
    return [*space.extremes(), *sampler.sample(2, np.random.default_rng(1))]


def images(space: SearchSpace) -> NDArray[np.float32]:
    shape = (space.batch, 3, space.resolution, space.resolution)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def values(space: SearchSpace, architecture: Architecture) -> dict[str, NDArray[Any]]:
    """Images, or the tokens and the cache of a language model."""
    given: dict[str, NDArray[Any]] = {}
    rng = np.random.default_rng(0)
    for value in onnx.load_from_string(space.build(architecture)).graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            given[value.name] = rng.integers(0, 500, shape)
        else:
            given[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return given


def assert_agree(network: nn.Module, model: bytes | Path, given: dict[str, NDArray[Any]]) -> None:
    """All outputs of a module are those of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"]
    )
    with torch.inference_mode():
        outputs = network.eval()(*map(torch.from_numpy, given.values()))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for output, expected in zip(outputs, session.run(None, given), strict=True):
        assert_close(output.numpy(), expected)


def run_onnx(model: bytes | Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    given = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": x})
    return output


def run_torch(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(x)).numpy()


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    scale = float(np.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


def moderate(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights that keep activations of order 1, with biases of both signs."""
    rng = np.random.default_rng(list(name.encode()))
    if name.endswith((".scale", ".variance")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    size = 0.2 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[1:]))
    return np.float32(size) * rng.standard_normal(shape, dtype=np.float32)


def imported(folder: Path) -> nn.Module:
    """What a user does with model.py and weights.pt."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.Model()
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SPACES, PLAIN, EVERYTHING])
def test_the_torch_module_computes_what_the_onnx_graph_does(name: str) -> None:
    space = small(name)
    for architecture in some(space):
        source = torch_source(space, architecture)
        network = build(source, "network")
        network.load_state_dict(weights_of(source, moderate))
        model = space.build(architecture, moderate)
        assert_agree(network, model, values(space, architecture))


@pytest.mark.parametrize("name", operators.OPERATORS)
def test_the_module_of_each_operator_computes_what_its_graph_does(name: str) -> None:
    space = operators.OneOperator()
    architecture = Architecture("one-operator", ((name,),))
    source = torch_source(space, architecture)
    network = build(source, "network")
    network.load_state_dict(weights_of(source, draw_weights))
    data = space.build(architecture, draw_weights)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = operators.values(name)
    (expected,) = session.run(None, given)
    with torch.no_grad():
        output = network.eval()(*map(torch.from_numpy, given.values()))
    assert output.shape == expected.shape
    assert_close(output.numpy(), expected)
    assert max(map(len, source.text.splitlines())) <= 100
    sizes = [math.prod(t.dims) for t in onnx.load_from_string(data).graph.initializer]
    assert parameters(network) == sum(sizes)


@pytest.mark.parametrize("name", SPACES)
def test_exported_files_are_valid_and_agree(name: str, tmp_path: Path) -> None:
    space = small(name)
    for each in esm_host.export(space, some(space), tmp_path / "out", seed=3):
        onnx.checker.check_model(str(each.folder / "model.onnx"), full_check=True)
        given = values(space, each.architecture)
        assert_agree(imported(each.folder), each.folder / "model.onnx", given)
        text = (each.folder / "model.py").read_text()
        roots = re.findall(r"^(?:from|import) (\w+)", text, re.M)
        assert set(roots) == {"torch"}, "it needs nothing of ours"
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", [*SPACES, PLAIN, EVERYTHING])
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    space = small(name)
    for architecture in some(space):
        network = esm_host.torch_module(space, architecture)
        network.train()
        before = copy.deepcopy(network.state_dict())
        outputs = network(*map(torch.from_numpy, values(space, architecture).values()))
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        first.square().mean().backward()
        for path, parameter in network.named_parameters():
            assert parameter.grad is not None, path
            assert parameter.grad.isfinite().all(), path
        moved = {
            path
            for path, value in network.state_dict().items()
            if path.endswith("running_mean") and not value.equal(before[path])
        }
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        own_norms = ("autoformer", "hat", "hat-encoder", "hat-step", "lm-prefill", "lm-decode")
        assert norms or space.name in own_norms
        if space.name != "nasbench201":  # some of whose cells give zeros, whose mean is known
            assert len(moved) == len(norms)


@pytest.mark.parametrize("name", [*SPACES, PLAIN, EVERYTHING])
def test_parameters_are_the_graph_s_but_for_batch_norms(name: str, tmp_path: Path) -> None:
    """A folded norm adds a scale per channel, its shift stands for the bias; of one that is in the
    graph mean and variance are no parameters."""
    space = small(name)
    for each in esm_host.export(space, some(space), tmp_path / "out", formats=["json"]):
        graph = onnx.load_from_string(space.build(each.architecture)).graph
        assert each.parameters == sum(math.prod(tensor.dims) for tensor in graph.initializer)
        network = esm_host.torch_module(space, each.architecture)
        kept = sum(
            graph_channels(graph, node) for node in graph.node if node.op_type.startswith("Batch")
        )
        folded = sum(
            module.num_features
            for path, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d) and path.endswith("_norm")
        )
        assert parameters(network) == each.parameters + folded - 2 * kept


def graph_channels(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    return next(int(t.dims[0]) for t in graph.initializer if t.name == node.input[1])


def test_resnet50_and_nasbench201_have_their_published_sizes() -> None:
    resnet50 = Architecture("resnet", tuple(("k3e1",) * depth for depth in (3, 4, 6, 3)))
    assert parameters(esm_host.torch_module(load_space("resnet"), resnet50)) == 25_557_032
    # The shortcuts' convolutions, without a norm, have a bias here: 32 and 64 numbers.
    for word, published in (("nor_conv_3x3", 1_531_546), ("none", 73_306)):
        cell = Architecture("nasbench201", ((word,) * 6,))
        assert parameters(esm_host.torch_module(load_space("nasbench201"), cell)) == published + 96


def test_mobilenetv4_and_yolov5_have_their_published_sizes() -> None:
    conv_m = (
        "s3m5e4 s3m3e2 | s3m5e6 2*s3m3e4 s3m5e4 s3m3e4 s3m0e4 s0m0e2 s3m0e4 | s5m5e6 s5m5e4 "
        "2*s3m5e4 s0m0e4 s3m0e4 s3m5e2 s5m5e4 2*s0m0e4 s5m0e2"
    )
    assert parameters(esm_host.torch_module(load_space("mobilenetv4"), conv_m)) == 9_715_512
    # Networks n and s without their heads of anchors: 1x1 convolutions from three scales.
    for share, published, scales in (
        ("1/2", 1_872_157, (64, 128, 256)),
        ("1", 7_235_389, (128, 256, 512)),
    ):
        stages = " | ".join(f"w{share}: {depth}*k3e1" for depth in (1, 2, 3, 1))
        network = esm_host.torch_module(load_space("detector"), f"{stages} | k3e1")
        ours = parameters(network) - parameters(network.get_submodule("head"))
        assert ours == published - 255 * (sum(scales) + 3)


def test_fbnet_has_its_published_sizes() -> None:
    folder = os.environ.get("ESM_DATA") or ROOT.parent / "shared/data"
    path = Path(folder) / "fbnet.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    types = (
        *("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"),
    )
    space = load_space("fbnet")
    table = pd.read_parquet(path, columns=["arch", "zc_params"]).iloc[::1000]
    for row in table.itertuples(index=False):
        labels = iter([types[int(number)] for number in row.arch.split("_")])
        units = tuple(tuple(next(labels) for _ in range(d)) for (d,) in space.depths)
        network = esm_host.torch_module(space, Architecture("fbnet", units))
        assert parameters(network) == row.zc_params


def unnormalised(space: SearchSpace, architecture: Architecture) -> list[str]:
    """Convolutions after which no norm comes, which have a bias instead."""
    modules = dict(esm_host.torch_module(space, architecture).named_modules())
    convolutions = {p: m for p, m in modules.items() if isinstance(m, nn.Conv2d)}
    for path, module in convolutions.items():
        assert (module.bias is None) == (f"{path}_norm" in modules)
    return [path for path, module in convolutions.items() if module.bias is not None]


def test_norms_are_where_the_published_networks_have_them() -> None:
    none = {"resnet": 0, "fbnet": 0, "nasbench201": 2}
    for name, count in none.items():
        space = small(name)
        assert len(unnormalised(space, space.extremes()[1])) == count
    mobile = small("mobilenetv3")
    paths = unnormalised(mobile, mobile.extremes()[0])
    assert paths[-1] == "head.conv2"
    assert all(".squeeze_excite." in path for path in paths[:-1])
    assert len(paths) == 2 * 4 + 1  # two units of two blocks squeeze, two convolutions each
    dense = small("densenet")
    assert unnormalised(dense, dense.extremes()[0]) == [
        *("unit1.block1.conv2", "transition1.conv1", "unit2.block1.conv2", "transition2.conv1"),
        *("unit3.block1.conv2", "transition3.conv1", "unit4.block1.conv2", "transition4.conv1"),
        "unit5.block1.conv2",
    ]


def test_whether_a_norm_follows_does_not_show_in_the_graph() -> None:
    class Told(type(load_space(PLAIN))):  # type: ignore[misc]
        def network(self, net: Any, units: Any) -> str:
            plain = net.conv
            net.conv = lambda *args, **kwargs: plain(*args, **kwargs, norm=False)
            return super().network(net, units)

    space, told = load_space(PLAIN, resolution=64), Told(resolution=64)
    for architecture in space.extremes():
        assert space.build(architecture) == told.build(architecture)
        assert unnormalised(space, architecture) == []
        assert len(unnormalised(told, architecture)) == architecture.depth


def test_a_space_s_own_batch_norm_is_the_only_one() -> None:
    space = small(EVERYTHING)
    text = torch_source(space, space.extremes()[0]).text
    assert "self.norm1 = nn.BatchNorm2d(8)" in text
    assert re.search(r"self.conv\d = nn.Conv2d\(16, 8, 1\)", text), "with a bias, as in the graph"


def test_the_batch_is_free() -> None:
    space = small(EVERYTHING)
    network = esm_host.torch_module(space, space.extremes()[1], seed=0)
    x = np.random.default_rng(0).standard_normal((5, 3, 97, 97), dtype=np.float32)
    assert_close(run_torch(network, x)[:2], run_torch(network, x[:2]))


def test_a_module_that_reads_one_token_takes_any_batch_and_cache() -> None:
    space = load_space("lm-decode", width_mult=0.125)
    network = esm_host.torch_module(space, space.extremes()[0], seed=0).eval()
    several = load_space("lm-decode", width_mult=0.125, batch=3).at(past=6)
    given = values(several, several.extremes()[0])
    tensors = [torch.from_numpy(each) for each in given.values()]
    with torch.inference_mode():
        together = network(*tensors)[0]
        alone = torch.cat(
            [network(*(each[row : row + 1] for each in tensors))[0] for row in range(3)]
        )
    assert_close(together.numpy(), alone.numpy())


def test_equal_scopes_share_a_class_that_names_their_options() -> None:
    space = small("nasbench201", width_mult=0.5)
    text = torch_source(space, space.extremes()[1]).text
    assert text.count("= Stage2Cell1()") == 5
    space = small("resnet")
    text = torch_source(space, space.extremes()[1]).text
    names = [f"unit4.block{number} (k7e1)" for number in range(2, 8)]
    (about,) = re.findall(r'class Unit4Block2.*?"""(.*?)"""', text, re.S)
    assert " ".join(about.split()) == ", ".join(names) + "."


def test_modules_can_be_copied_and_their_text_is_found() -> None:
    space = small("resnet")
    network = esm_host.torch_module(space, space.extremes()[0], seed=0)
    copied = copy.deepcopy(network)
    assert_close(run_torch(copied, images(space)), run_torch(network, images(space)))
    assert "self.stem(x)" in inspect.getsource(type(network).forward)


def test_weights_are_torch_s_unless_a_seed_is_given() -> None:
    space = small("resnet")
    architecture = space.extremes()[0]
    torch.manual_seed(0)
    fresh = esm_host.torch_module(space, architecture.to_json()).state_dict()
    torch.manual_seed(0)
    again = esm_host.torch_module(space, architecture).state_dict()
    assert all(fresh[path].equal(again[path]) for path in fresh)
    seeded, other = (esm_host.torch_module(space, architecture, seed=n) for n in (0, 1))
    weights = [n.state_dict()["head.linear1.weight"] for n in (seeded, other)]
    assert not weights[0].equal(weights[1])
    assert not weights[0].equal(fresh["head.linear1.weight"])


def test_int8_networks_are_onnx_alone(tmp_path: Path) -> None:
    space = small("mobilenetv3", dtype="int8")
    architecture = space.extremes()[0]
    (each,) = esm_host.export(space, [architecture], tmp_path / "out")
    assert sorted(path.name for path in each.folder.iterdir()) == ["model.onnx"]
    onnx.checker.check_model(str(each.folder / "model.onnx"), full_check=True)
    assert np.isfinite(run_onnx(each.folder / "model.onnx", images(space))).all()
    for refused in (
        lambda: esm_host.torch_module(space, architecture),
        lambda: esm_host.export(space, [architecture], tmp_path / "b", formats=["torch"]),
    ):
        with pytest.raises(esm_host.UsageError, match="int8 networks have no torch form"):
            refused()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("Softsign", r"operator Softsign \(unit1.block1.softsign1\) has no torch form"),
        ("dilated", r"operator Conv with this dilations \(unit1.block1.conv1\)"),
        ("cubic", r"operator Resize of mode cubic \(unit1.block1.resize1\)"),
    ],
)
def test_an_operator_without_a_torch_form_is_named(option: str, said: str, tmp_path: Path) -> None:
    space = load_space(FOREIGN)
    architecture = Architecture("foreign", ((option,),))
    with pytest.raises(esm_host.UsageError, match=said) as caught:
        esm_host.export(space, [architecture], tmp_path / "out")
    assert "formats onnx,json" in str(caught.value)
    assert not (tmp_path / "out").exists()
    (each,) = esm_host.export(space, [architecture], tmp_path / "out", formats=["onnx", "json"])
    assert run_onnx(each.folder / "model.onnx", images(space)).shape == (1, 10)


# Files and the command ----------------------------------------------------------------------


def command(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], input=stdin)
    return result.exit_code, result.stdout, result.stderr


SMALL = ("--resolution", 32, "--width-mult", 0.25)


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """What a search or ``predict --json`` writes."""
    space = load_space("resnet", resolution=32)
    first, last = space.extremes()
    results = [
        {"latency_ms": 1.5, "accuracy_percent": 71.0, "architecture": first.to_json()},
        {"latency_ms": 9.5, "architecture": last.to_json()},
        {"latency_ms": 1.5, "architecture": first.to_json()},
    ]
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps({"schema_version": 1, "results": results}))
    return path


def test_the_command_writes_a_folder_per_architecture_and_a_list(
    chosen: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = command("resnet", "-a", chosen, "-o", out, *SMALL)
    assert code == 0, stderr
    first, last = load_space("resnet").extremes()
    names = [f"resnet_{a.key}" for a in (first, last, first)]
    assert {path.name for path in out.iterdir()} == {*names, "architectures.json"}
    assert [line.split()[0] for line in stdout.splitlines()[1:]] == [str(out / n) for n in names]
    assert stderr.splitlines()[-1].startswith(f"3 architectures are in {out}: esm-host time ")
    for name in names:
        files = sorted(path.name for path in (out / name).iterdir())
        assert files == ["model.onnx", "model.py", "weights.pt"]
    index = json.loads((out / "architectures.json").read_text())
    assert index["space"]["width_mult"] == 0.25
    assert [entry["folder"] for entry in index["results"]] == names
    assert index["results"][0]["accuracy_percent"] == 71.0
    assert [entry["latency_ms"] for entry in index["results"]] == [1.5, 9.5, 1.5]
    # The list is one that commands read.
    code, _, stderr = command(
        *("resnet", "-a", out / "architectures.json", "-o", tmp_path / "again", *SMALL),
        *("--format", "json"),
    )
    assert code == 0, stderr
    assert json.loads((tmp_path / "again" / "architectures.json").read_text()) == index
    assert len(list((tmp_path / "again").iterdir())) == 1


def test_the_same_seed_gives_the_same_files(chosen: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        given = ("--seed", seed, "--format", "onnx,torch")
        code, _, stderr = command("resnet", "-a", chosen, "-o", tmp_path / name, *SMALL, *given)
        assert code == 0, stderr
    read = {n: [p.read_bytes() for p in sorted((tmp_path / n).glob("*/*"))] for n in "abc"}
    assert read["a"] == read["b"]
    assert all(a != c for a, c in zip(read["a"][::3], read["c"][::3], strict=True))


def test_architectures_come_from_stdin_alone_too(tmp_path: Path) -> None:
    architecture = load_space(PLAIN).extremes()[0]
    code, _, stderr = command(
        *(PLAIN, "-a", "-", "-o", tmp_path / "out", "--format", "torch"),
        stdin=json.dumps(architecture.to_json()),
    )
    assert code == 0, stderr
    assert stderr.splitlines() == [f"1 architecture is in {tmp_path / 'out'}"]
    imported(tmp_path / "out" / f"plainnet_{architecture.key}")


WRONG: dict[str, tuple[str, tuple[object, ...], str]] = {
    "no such file": ("resnet", ("-a", "nowhere.json"), "cannot read nowhere.json"),
    "no JSON": ("resnet", ("-a", "text.json"), "text.json is not JSON"),
    "empty": ("resnet", ("-a", "empty.json"), "empty.json holds no architecture"),
    "another space's": ("densenet", (), "architecture 1: the architecture is of space 'resnet'"),
    "no architecture": ("resnet", ("-a", "other.json"), "architecture 2: an architecture is writ"),
    "unknown option": ("resnet", ("-a", "k9.json"), "architecture 1: unit 1 has a block 'k9e1'"),
    "format": (
        "resnet",
        ("--format", "onnx,tflite"),
        "--format: unknown format 'tflite': choose onnx, torch",
    ),
    "no format": ("resnet", ("--format", ","), "--format is empty"),
    "folder in use": ("resnet", ("-o", "."), "--output . already exists: give a new or an empty"),
    "file in the way": ("resnet", ("-o", "text.json"), "--output text.json already exists"),
    "no parent": ("resnet", ("-o", "no/such"), "--output no/such: the folder no does not exist"),
    "seed": ("resnet", ("--seed", -1), "--seed -1: give 0 or more"),
    "unknown space": ("resent", (), "unknown search space 'resent': did you mean 'resnet'"),
    "no campaign": ("folder", (), "folder is not a campaign"),
    "too large": ("resnet", ("--width-mult", 8), "GiB, and an ONNX file holds 2"),
    "int8": ("resnet", ("--dtype", "int8", "--format", "torch"), "int8 networks have no torch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_writes_nothing(
    case: str, chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("k3e1")
    (tmp_path / "empty.json").write_text('{"schema_version": 1, "results": []}')
    first = load_space("resnet").extremes()[0].to_json()
    (tmp_path / "other.json").write_text(json.dumps([first, {"latency_ms": 3}]))
    first["units"][0] = ["k9e1"]
    (tmp_path / "k9.json").write_text(json.dumps(first))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    source, given, said = WRONG[case]
    usual = {"-a": chosen.name, "-o": "out"}
    for flag in usual.keys() - set(map(str, given)):
        given = (*given, flag, usual[flag])
    code, stdout, stderr = command(source, *given)
    assert code == 2, stderr
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_list_is_refused_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(esm_host.UsageError, match="empty list of architectures"):
        esm_host.export(load_space("resnet"), [], tmp_path / "out")
    with pytest.raises(esm_host.ModelsError, match="is of space 'resnet'"):
        esm_host.torch_module(small("ofa"), load_space("resnet").extremes()[0])
