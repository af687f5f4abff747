"""What models are fed: shapes and arrays that were given, names that inputs share, refusals."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from esm_agent.measure import feeds
from esm_agent.measure.backends import first_run
from esm_agent.measure.binding import Bound, values
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import Case, FailureKind, Input, MeasureSpec


class Node(NamedTuple):
    name: str
    type: str
    shape: list[Any]


class Session:
    """As much of one as is asked for inputs."""

    def __init__(self, *inputs: Node) -> None:
        self._inputs = inputs

    def get_inputs(self) -> tuple[Node, ...]:
        return self._inputs

    def get_overridable_initializers(self) -> tuple[Node, ...]:
        return ()


IMAGE = Node("image", "tensor(float)", ["batch", 3, "height", "width"])
TOKENS = Node("tokens", "tensor(int64)", ["batch", None])


def shaped(**shapes: tuple[int, ...]) -> Case:
    return Case(tuple(shapes.items()))


def refusal(session: Session, case: Case = Case(), given: Path | None = None) -> str:  # noqa: B008
    with pytest.raises(ModelError) as caught:
        feeds.draw(session, 0, case, given)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT
    return str(caught.value)


def saved(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "inputs.npz"
    np.savez_compressed(path, **arrays)
    return path


def test_named_dimensions_follow_a_shape_that_was_given() -> None:
    feed = feeds.draw(Session(IMAGE, TOKENS), 0, shaped(image=(8, 3, 20, 30)))
    assert feed.inputs == (
        Input("image", "float32", (8, 3, 20, 30)),
        Input("tokens", "int64", (8, 1)),
    )
    assert feed.free == ("tokens",)
    assert set(np.unique(feed.arrays["tokens"])) <= {0, 1}
    assert 0.8 < feed.arrays["image"].std() < 1.2


def test_the_same_seed_draws_the_same() -> None:
    session = Session(IMAGE, TOKENS)
    case = shaped(image=(1, 3, 4, 4))
    one, same, other = (feeds.draw(session, seed, case).arrays["image"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_strings_are_words_also_where_there_is_but_one() -> None:
    nodes = (Node("s", "tensor(string)", [2, 3]), Node("one", "tensor(string)", []))
    arrays = feeds.draw(Session(*nodes), 0).arrays
    assert arrays["s"].shape == (2, 3)
    assert arrays["one"].shape == ()
    assert all(isinstance(word, str) and word for word in arrays["s"].ravel())


def test_arrays_that_came_are_fed_and_the_rest_is_drawn(tmp_path: Path) -> None:
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    path = saved(tmp_path, image=np.asfortranarray(image))
    feed = feeds.draw(Session(IMAGE, TOKENS), 0, shaped(tokens=(2, 7)), path)
    np.testing.assert_array_equal(feed.arrays["image"], image)
    assert feed.arrays["tokens"].shape == (2, 7)
    assert feed.given


def test_strings_come_in_a_file_too(tmp_path: Path) -> None:
    path = saved(tmp_path, s=np.array(["héllo", "b"]))
    feed = feeds.draw(Session(Node("s", "tensor(string)", ["n"])), 0, given=path)
    assert feed.arrays["s"].tolist() == ["héllo", "b"]
    assert feed.inputs == (Input("s", "string", (2,)),)


def test_a_scalar_stays_one(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.float32(3))
    feed = feeds.draw(Session(Node("x", "tensor(float)", [])), 0, given=path)
    assert feed.arrays["x"].shape == ()


def test_dimensions_of_one_name_may_differ_where_they_are_given() -> None:
    """As the runtime lets them."""
    feed = feeds.draw(Session(IMAGE, TOKENS), 0, shaped(image=(1, 3, 8, 8), tokens=(2, 5)))
    assert [i.dims for i in feed.inputs] == [(1, 3, 8, 8), (2, 5)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"image": (1, 3, 8)}, "'image': the model takes batchx3xheightxwidth, given 1x3x8"),
        ({"image": (1, 4, 8, 8)}, "takes batchx3xheightxwidth, given 1x4x8x8"),
        (
            {"pixels": (1,)},
            "unknown input 'pixels': the model takes 'image', 'tokens'",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    assert words in refusal(Session(IMAGE, TOKENS), shaped(**shapes))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": np.zeros((1, 3, 8, 8))}, "the model takes float32, given float64"),
        ({"image": np.zeros((1, 3, 8, 8), ">f4")}, "given >f4"),
        ({"image": np.zeros((1, 3, 8), np.float32)}, "given 1x3x8"),
        ({"pixels": np.zeros(1)}, "a value is given for an unknown input 'pixels'"),
        ({"image": np.array([{}], dtype=object)}, "given object"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    assert words in refusal(Session(IMAGE, TOKENS), given=saved(tmp_path, **arrays))


def test_a_shape_and_an_array_must_not_contradict_each_other(tmp_path: Path) -> None:
    path = saved(tmp_path, tokens=np.zeros((1, 4), np.int64))
    assert "leave one of them out" in refusal(Session(TOKENS), shaped(tokens=(1, 5)), path)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_npz_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "inputs.npz"
    path.write_bytes(data)
    assert "numpy.savez" in refusal(Session(TOKENS), given=path)


@pytest.mark.parametrize("cut", [30, 120, 200])
def test_a_damaged_npz_is_refused(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path, tokens=np.zeros((1, 4), np.int64))
    data = bytearray(path.read_bytes())
    data[cut : cut + 10] = b"\xff" * 10
    path.write_bytes(data)
    assert refusal(Session(TOKENS), given=path)


def test_a_header_that_promises_terabytes_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = (1, 2**45)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    path = tmp_path / "inputs.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokens.npy", header.getvalue())
    assert "more than this device's memory" in refusal(Session(TOKENS), given=path)


@pytest.mark.parametrize("size", [2**40, 2**63, 2**64 - 1])
def test_shapes_beyond_all_memory_are_refused(size: int) -> None:
    words = refusal(Session(IMAGE), shaped(image=(size, 3, size, size)))
    assert "more than this device's memory" in words


def test_a_model_that_itself_asks_for_too_much_lacks_memory() -> None:
    with pytest.raises(ModelError) as caught:
        feeds.draw(Session(Node("x", "tensor(float)", [2**31, 2**31])), 0)
    assert caught.value.failure.kind is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "kind", ["map(int64,tensor(float))", "seq(seq(tensor(float)))", "sparse_tensor(float)"]
)
def test_what_is_made_of_no_tensors_is_unsupported(kind: str) -> None:
    with pytest.raises(ModelError, match="input 'x' is of type") as caught:
        feeds.draw(Session(Node("x", kind, [])), 0)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP


# In a real runtime


def model(tmp_path: Path, case: Case, kind: int = TensorProto.FLOAT) -> UploadedModel:
    """A product of two inputs, whose inner dimensions have to agree."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("a", kind, ["n", "inner"]),
            helper.make_tensor_value_info("b", kind, [3, "m"]),
        ],
        [helper.make_tensor_value_info("y", kind, ["n", "m"])],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return UploadedModel("m", path, case)


def test_shapes_that_the_model_itself_does_not_take_are_told_with_what_was_fed(
    tmp_path: Path,
) -> None:
    loaded = CpuProvider().load(model(tmp_path, shaped(a=(2, 4))), MeasureSpec())
    with pytest.raises(ModelError, match="fed a float32 2x4, b float32 3x1") as caught:
        first_run(loaded)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT


def test_a_free_dimension_that_cannot_be_one_is_explained(tmp_path: Path) -> None:
    loaded = CpuProvider().load(model(tmp_path, Case()), MeasureSpec())
    match = "of 'a', 'b' were set to 1: give their sizes"
    with pytest.raises(ModelError, match=match) as caught:
        first_run(loaded)
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT


def test_given_shapes_are_run(tmp_path: Path) -> None:
    given = model(tmp_path, shaped(a=(2, 3), b=(3, 5)))
    session = onnxruntime.InferenceSession(given.path, providers=["CPUExecutionProvider"])
    bound = Bound(session, values(feeds.draw(session, 0, given.case)))
    bound.run()
    assert bound.outputs()[0].shape() == [2, 5]
