"""What networks are made of: parts of graphs, their work, and the table that looks them up."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from esm_host.encoding.cost import CostEncoder
from esm_models import part_table as part_table_module
from esm_models.cost import KINDS
from esm_models.errors import InvalidSpaceError
from esm_models.graph import Network
from esm_models.part_table import PartTable, Rule, part_table
from esm_models.parts import Part, parts_of, split
from esm_models.space import Feature, SearchSpace
from esm_models.spaces import SPACES, load_space
from tests.host.own_spaces import Tiny, TwoBefore
from tests.host.transformers import Decoder, ViT, WidthPerBlock

ROOT = Path(__file__).parents[2]


def random_codes(space: SearchSpace, n: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = np.full((n, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    for row in blocks:
        for unit, (depths, options) in enumerate(
            zip(space.depths, space.block_options, strict=True)
        ):
            depth = int(rng.choice(np.array(depths)))
            size = 1 if space.one_option_per_unit else depth
            row[unit, :depth] = options[rng.integers(len(options), size=size)]
    sizes = space.choice_sizes
    choices = rng.integers(sizes, size=(n, len(sizes))) if sizes else None
    if not space.contexts:
        return space.join(blocks, choices)
    contexts = [rng.choice(values[:2], n) for values in space.contexts.values()]
    return space.join(blocks, choices, np.stack(contexts, axis=1))


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return load_space(request.param)


# Parts of one graph


def hand_made() -> tuple[Network, str]:
    net = Network((2, 3, 8, 8))
    with net.scope("stem"):
        x = net.relu(net.conv(net.input, 8, kernel=3, stride=2))
    with net.scope("unit1.block1"):
        y = net.conv(net.conv(x, 8, kernel=5, groups=8), 8, groups=2)
        with net.scope("inner"):
            x = net.add(x, net.conv(y, 8))
    return net, net.linear(net.flatten(net.global_average_pool(x)), 10)


def test_work_is_what_counting_by_hand_gives() -> None:
    stem, block, *alone = split(*hand_made())
    assert [part.name for part in alone] == ["globalaveragepool1", "flatten1", "linear1"]
    conv, relu = stem.operators
    image, maps = 2 * 3 * 8 * 8, 2 * 8 * 4 * 4
    assert (conv.kind, conv.macs, conv.flops) == ("conv", maps * 3 * 9, 2 * maps * 3 * 9)
    assert conv.activation_bytes == 4 * (image + maps)
    assert conv.weight_bytes == 4 * (8 * 3 * 9 + 8)
    assert (relu.kind, relu.flops, relu.bytes) == ("elementwise", maps, 4 * 2 * maps)
    assert [(o.kind, o.macs) for o in block.operators] == [
        ("depthwise", maps * 25),
        ("grouped", maps * 4),
        ("pointwise", maps * 8),
        ("elementwise", 0),
    ]
    assert block.operators[-1].activation_bytes == 4 * 3 * maps
    pool, flatten, linear = (part.operators[0] for part in alone)
    assert (pool.kind, pool.flops, pool.bytes) == ("pool", maps, 4 * (maps + 2 * 8))
    assert (flatten.kind, flatten.flops, flatten.bytes) == ("layout", 0, 0)
    assert (linear.kind, linear.macs, linear.weight_bytes) == ("linear", 2 * 80, 4 * 90)
    assert block.region == "unit1"
    assert stem.region == alone[0].region == "rest"


def test_relu6_costs_what_relu_does() -> None:
    net = Network((1, 8, 4, 4))
    with net.scope("stem"):
        x = net.relu6(net.relu(net.input))
    (part,) = split(net, x)
    relu, relu6 = part.operators
    assert (relu6.kind, relu6.flops) == (relu.kind, relu.flops) == ("elementwise", 128)
    assert relu6.bytes == relu.bytes + 4 * 2, "and its two bounds"


def test_work_of_a_transformer_is_what_counting_by_hand_gives() -> None:
    net = Network((1, 3, 8, 8))
    tokens = net.add_input("tokens", (2, 5), "int64")
    x = net.embedding(tokens, 50, 16)
    q, k, v = net.linear(x, 16), net.linear(x, 8), net.linear(x, 8)
    y = net.attention(q, k, v, heads=4, kv_heads=2)
    y = net.softmax(net.matmul(net.layer_norm(y), net.transpose(x, (0, 2, 1))))
    costs = {}
    for part in split(net, net.reduce_mean(y, [1])):
        (costs[part.name],) = part.operators or (None,)
    embedding = costs["embedding1"]
    assert (embedding.kind, embedding.flops) == ("layout", 0)
    assert embedding.parameters == 50 * 16
    assert embedding.weight_bytes == 4 * 2 * 5 * 16, "the rows that are read"
    assert embedding.activation_bytes == 4 * (2 * 5 + 2 * 5 * 16)
    linear = costs["linear1"]
    assert (linear.kind, linear.macs, linear.weight_bytes) == ("linear", 10 * 16 * 16, 4 * 256)
    attention = costs["attention1"]
    # Per batch and head of 4 features: scores of 5 by 5, and their sums of values.
    assert (attention.kind, attention.macs) == ("attention", 2 * 4 * (5 * 5 * 4 + 5 * 5 * 4))
    assert attention.flops == 2 * attention.macs
    assert attention.activation_bytes == 4 * 2 * 5 * (16 + 8 + 8 + 16)
    norm, product = costs["norm1"], costs["matmul1"]
    assert (norm.kind, norm.flops, norm.parameters) == ("norm", 2 * 160, 32)
    assert (product.kind, product.macs, product.parameters) == ("matmul", 2 * 5 * 5 * 16, 0)
    assert (costs["softmax1"].kind, costs["softmax1"].flops) == ("elementwise", 50)
    assert (costs["reducemean1"].kind, costs["reducemean1"].flops) == ("pool", 50)


def test_a_cache_of_keys_costs_attention_over_all_of_them() -> None:
    net = Network((1, 3, 8, 8))
    q = net.add_input("q", (1, 1, 16))
    k, v = (net.add_input(name, (1, 9, 16)) for name in ("k", "v"))
    (part,) = split(net, net.attention(q, k, v, heads=2, causal=True))
    assert part.macs == 9 * 16 + 9 * 16


def test_a_known_network_has_its_known_size() -> None:
    """ResNet-50 is in the space: 25.5 million parameters (batch normalisation folded) and, with
    the stride on the 3x3 convolution, 4.09 billion multiply-adds."""
    space = load_space("resnet")
    codes = np.full((1, 4, 7), -1, np.int16)
    for unit, depth in enumerate((3, 4, 6, 3)):
        codes[0, unit, :depth] = 2  # k3e1
    parts = parts_of(space, space.decode(codes)[0])
    assert sum(part.parameters for part in parts) == pytest.approx(25.53e6, rel=1e-3)
    assert sum(part.macs for part in parts) == pytest.approx(4.09e9, rel=2e-3)


def test_parts_add_up_to_the_graph(space: SearchSpace) -> None:
    for architecture in space.decode(random_codes(space, 3)):
        graph = onnx.ModelProto.FromString(space.build(architecture)).graph
        parts = parts_of(space, architecture)
        built = [onnx.ModelProto.FromString(part.build()).graph for part in parts]
        # A newer opset may have an attribute as a constant.
        types = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
        alone = Counter(node.op_type for g in built for node in g.node)
        assert {**alone, "Constant": 0} == {**types, "Constant": 0}
        weights = sum(math.prod(tensor.dims) for tensor in graph.initializer)
        assert sum(part.parameters for part in parts) == weights
        assert all(o.kind in KINDS for part in parts for o in part.operators)


def run_alone(part: Part) -> list[np.ndarray]:
    model = onnx.ModelProto.FromString(part.build())
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = rng.standard_normal(tensor.dims).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {
        node.name: rng.standard_normal(node.shape).astype(np.float32)
        if node.type == "tensor(float)"
        else rng.integers(0, 2, node.shape)
        for node in session.get_inputs()
    }
    return session.run(None, feeds)


@pytest.mark.parametrize("name", SPACES)
def test_a_part_alone_runs(name: str) -> None:
    side = {"resolution": 32} if name != "densenet" else {"resolution": 64}
    space = load_space(name, width_mult=0.25, **side)
    seen = {}
    for architecture in space.decode(random_codes(space, 2)):
        seen |= {part.key: part for part in parts_of(space, architecture)}
    for part in seen.values():
        graph = onnx.ModelProto.FromString(part.build()).graph
        assert [tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in graph.input] == [
            *part.inputs
        ]
        assert all(t.data_location == TensorProto.EXTERNAL for t in graph.initializer)
        results = run_alone(part)
        assert results
        for value, result in zip(graph.output, results, strict=True):
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == result.shape


def test_equal_keys_are_equal_graphs_and_nothing_else(space: SearchSpace) -> None:
    built: dict[str, bytes] = {}
    for architecture in space.decode(random_codes(space, 4)):
        for part in parts_of(space, architecture):
            assert built.setdefault(part.key, part.build()) == part.build()
    assert len(set(built.values())) == len(built)


def test_blocks_alike_share_a_key() -> None:
    space = load_space("resnet")
    codes = np.full((1, 4, 7), -1, np.int16)
    codes[0, :, :3] = 0
    keys = {part.name: part.key for part in parts_of(space, space.decode(codes)[0])}
    assert keys["unit1.block2"] == keys["unit1.block3"] != keys["unit1.block1"]
    assert keys["unit2.block2"] != keys["unit1.block2"]


# The table


def counts_of(table: PartTable, codes: np.ndarray) -> list[Counter[str]]:
    """Parts by key, looked up."""
    counted = []
    for rows in table.rows(codes).tolist():
        counter: Counter[str] = Counter()
        for row in rows:
            for (_, number), count in table.contents[row].items():
                counter[table.parts[number].key] += count
        counted.append(counter)
    return counted


def traced(space: SearchSpace, codes: np.ndarray) -> list[Counter[str]]:
    return [Counter(part.key for part in parts_of(space, a)) for a in space.decode(codes)]


def test_what_is_looked_up_is_what_tracing_gives(space: SearchSpace) -> None:
    """Of architectures that the table has not seen."""
    table = part_table(space)
    codes = random_codes(space, 60)
    if space.resolutions:  # two of them: each is traced on its own
        codes[:, -1, 0] %= 2
    table.rows(codes)
    fresh = random_codes(space, 5, seed=2)
    assert counts_of(table, fresh) == traced(space, fresh)
    assert table.additive == (not space.levels)


def test_no_architectures_have_no_rows(space: SearchSpace) -> None:
    table = part_table(space)
    table.rows(random_codes(space, 20))  # some spaces learn on what their parts depend
    assert len(table.rows(space.encode([]))) == 0


def test_every_cell_is_looked_up_as_it_is_traced() -> None:
    """Dead ends and images that arrive twice are where a formula goes wrong."""
    space = load_space("nasbench201", resolution=16)
    codes = np.random.default_rng(0).integers(0, 3, (120, 1, 6)).astype(np.int16)
    assert counts_of(part_table(space), codes) == traced(space, codes)


def test_a_complete_table_has_all_parts() -> None:
    """Units times first or other block times options, stem and head."""
    space = load_space("resnet", resolution=32, width_mult=0.25)
    table = PartTable(space)
    table.complete()
    assert len(table.parts) <= 4 * 2 * 9 + 2
    known = {part.key for part in table.parts}
    for counter in traced(space, random_codes(space, 5)):
        assert counter.keys() <= known


def test_blocks_that_depend_on_the_one_before_are_listed() -> None:
    space = load_space(f"{ROOT / 'tests' / 'host' / 'own_spaces.py'}:PlainNet", resolution=32)
    table = PartTable(space)
    codes = random_codes(space, 6)
    assert counts_of(table, codes) == traced(space, codes)
    assert table.rule is Rule.CHAIN
    table.complete()
    known = {part.key for part in table.parts}
    for counter in traced(space, random_codes(space, 40, seed=2)):
        assert counter.keys() <= known
    # Per unit first or other block, options and widths before, of which the input has one;
    # operators that stand alone, for the widths of the last block.
    assert len(table.parts) == 9 + 3 * 9 * 3 + 2 * 9 * 3 + 3 * 3


def test_blocks_that_depend_on_more_are_traced_one_by_one() -> None:
    space = TwoBefore(resolution=32)
    table = PartTable(space)
    codes = random_codes(space, 6)
    assert counts_of(table, codes) == traced(space, codes)
    assert table.rule is Rule.WHOLE
    with pytest.raises(InvalidSpaceError, match="two-before cannot be listed"):
        table.complete()


@pytest.mark.parametrize("cls", [ViT, WidthPerBlock])
def test_many_transformers_of_free_width_need_few_traces(
    cls: type[SearchSpace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks depend on the first block's width, or on that of the block before."""
    traced_one, count = part_table_module.parts_of, []
    monkeypatch.setattr(
        part_table_module, "parts_of", lambda *given: count.append(1) or traced_one(*given)
    )
    space = cls(resolution=64)
    table = PartTable(space)
    codes = random_codes(space, 2000)
    table.rows(codes)
    assert table.rule is Rule.CHAIN
    assert len(count) < 250
    assert counts_of(table, codes[:60]) == traced(space, codes[:60])
    table.complete()
    known = {part.key for part in table.parts}
    others = random_codes(space, 60, seed=5)
    assert counts_of(table, others) == traced(space, others)
    assert known == {part.key for part in table.parts}


@pytest.mark.parametrize("cls", [ViT, WidthPerBlock, Decoder])
def test_work_is_counted_in_the_unit_that_does_it(cls: type[SearchSpace]) -> None:
    """Also where two units have the same parts."""
    space = cls()
    encoder = CostEncoder(space)
    codes = random_codes(space, 20)
    counted = encoder.encode(space.decode(codes))
    for unit in range(1, space.unit_count + 1):
        places = [
            n for n, c in enumerate(encoder.columns) if c == f"unit{unit}.attention.operators"
        ]
        found = counted[:, places].sum(axis=1)
        blocks = (codes[:, unit - 1] >= 0).sum(axis=1)
        assert found.tolist() == (0 * blocks if cls is ViT and unit == 1 else blocks).tolist()


class Rare(SearchSpace):
    """Blocks that do one thing more after one of 32 others."""

    name = "rare"
    depths = ((12,),)
    features = (Feature("width", "w", tuple(range(32))),)

    def network(self, net, units):
        x, before = net.conv(net.input, 8, stride=16), None
        for number, block in enumerate(units[0], start=1):
            with net.scope(f"unit1.block{number}"):
                x = net.relu(net.conv(x, 8) if before == 7 and block["width"] < 16 else x)
                before = block["width"]
        return net.flatten(x)


def test_looked_up_architectures_are_compared_with_traces() -> None:
    """The first ones that were traced do not show on what a block depends."""
    space = Rare(resolution=32)
    table = PartTable(space)
    assert table.rule is Rule.PLACE
    codes = random_codes(space, 2000)
    for part in np.split(codes, (10, 100, 1000)):
        table.rows(part)
    assert table.rule is Rule.CHAIN
    assert counts_of(table, codes) == traced(space, codes)


def test_a_block_that_no_architecture_has_is_refused() -> None:
    class Misnamed(Tiny):
        name = "misnamed"

        def network(self, net, units):
            with net.scope("unit4.block1"):
                return net.relu(net.input)

    with pytest.raises(InvalidSpaceError, match=r"misnamed has operators in the scope of a block"):
        PartTable(Misnamed(resolution=32))


def test_parts_of_a_language_model_run_alone() -> None:
    space = Decoder(batch=2)
    for part in parts_of(space, space.extremes()[1]):
        assert all(np.isfinite(output).all() for output in run_alone(part))


def test_operators_outside_scopes_are_parts() -> None:
    space = Tiny(resolution=32)
    codes = random_codes(space, 5)
    assert counts_of(PartTable(space), codes) == traced(space, codes)


def test_many_architectures_need_few_traces() -> None:
    space = load_space("mobilenetv3")
    codes = np.random.default_rng(0).integers(0, 9, (200_000, 4, 4)).astype(np.int16)
    rows = part_table(space).rows(codes)
    assert rows.shape == (200_000, 17)
    assert len(part_table(space).contents) < 200
