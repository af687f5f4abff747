"""Values that inputs are given: which model gets which, and what does not fit."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_host.errors import UsageError
from esm_host.timing.given import Given
from esm_host.timing.inputs import Array, GraphInput
from esm_protos.messages import File

IMAGE = GraphInput("image", "float32", ("N", 3))
MASK = GraphInput("mask", "bool", ("N",))
WEIGHT = GraphInput("weight", "float32", (3,))
SEQUENCE = GraphInput("parts", "seq(float32)", None)
MAYBE = GraphInput("maybe", "optional(float32)", (3,))
SMALL = GraphInput("small", "uint4", (3,))


def members(file: File | None) -> list[str]:
    assert file is not None
    assert file.path is not None
    with zipfile.ZipFile(file.path) as archive:
        return sorted(archive.namelist())


def proto(array: Any, name: str = "") -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def test_arrays_are_looked_at_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.zeros((2, 3), ">f4"), i=np.int64(3), t=np.array(["a", "bc"]), b=[True])
    types = {"x": "float32", "i": "int64", "t": "string", "b": "bool"}
    inputs = [GraphInput(name, kind, None) for name, kind in types.items()]
    file, arrays = of([path], inputs)
    assert arrays == {
        "x": Array("float32", (2, 3)),
        "i": Array("int64", ()),
        "t": Array("string", (2,)),
        "b": Array("bool", (1,)),
    }
    assert file is not None
    assert file.path == path, "it is sent as it is"


def test_a_model_gets_what_it_has_inputs_for(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, image=np.zeros((2, 3), np.float32), mask=[True, False])
    models = {"a": [IMAGE, MASK], "b": [IMAGE], "c": [IMAGE], "d": [WEIGHT]}
    given = Given([path], tmp_path, models)
    (both, _), (alone, arrays), (same, _) = map(given.of, "abc")
    assert both is not None
    assert both.path == path
    assert members(alone) == ["image.npy"]
    assert alone == same
    assert list(arrays) == ["image"]
    assert given.of("d") == (None, {})
    assert alone is not None
    assert alone.path is not None
    with np.load(alone.path) as kept:
        assert kept["image"].shape == (2, 3)


def test_an_array_that_no_model_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, imag=np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match="unknown input 'imag': did you mean 'image'"):
        of([path], [IMAGE])


def test_an_initializer_that_is_an_input_too_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, weight=np.zeros(3, np.float32))
    _, arrays = of([path], [IMAGE, WEIGHT])
    assert arrays == {"weight": Array("float32", (3,))}


def saved(folder: Path, **protos: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in protos.items():
        (folder / f"{name}.pb").write_bytes(value.SerializeToString())
    return folder


def of(paths: Sequence[Path], inputs: Sequence[GraphInput]) -> tuple[File | None, Any]:
    return Given(paths, paths[0].parent, {"m.onnx": inputs}).of("m.onnx")


def test_a_folder_as_onnx_keeps_its_test_data(tmp_path: Path) -> None:
    """By position; what a value calls itself counts more; outputs are no inputs."""
    folder = saved(
        tmp_path / "test_data_set_0",
        input_0=proto([True], "mask"),
        input_1=proto(np.zeros((1, 3), np.float32), "elsewhere"),
        input_2=numpy_helper.from_list([np.zeros(2, np.float32)], "any"),
        input_10=numpy_helper.from_optional(np.zeros(3, np.float32), "maybe"),
        output_0=proto([1]),
    )
    inputs = [MASK, IMAGE, SEQUENCE, SMALL, MAYBE]
    file, arrays = of([folder], inputs)
    assert members(file) == ["image.pb", "mask.pb", "maybe.pb", "parts.pb"]
    assert arrays["image"] == Array("float32", (1, 3))
    assert arrays["mask"] == Array("bool", (1,))
    assert arrays["maybe"] == Array("optional(float32)", (3,))
    assert arrays["parts"] == Array("seq(float32)", (2,))


def test_the_same_values_are_the_same_file(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, input_0=proto([True])) for name in ("a", "b"))
    assert of([one], [MASK])[0] == of([other], [MASK])[0]


def test_files_are_of_the_input_that_they_name(tmp_path: Path) -> None:
    saved(tmp_path, a=proto([True], "mask"), image=proto(np.zeros((1, 3), np.float32)))
    saved(tmp_path, b=helper.make_tensor("small", TensorProto.UINT4, [3], [1, 2, 3]))
    absent = onnx.OptionalProto(name="maybe", elem_type=onnx.OptionalProto.TENSOR)
    saved(tmp_path, c=absent)
    paths = [tmp_path / f"{name}.pb" for name in ("a", "image", "b", "c")]
    file, arrays = of(paths, [IMAGE, MASK, SMALL, MAYBE])
    assert members(file) == ["image.pb", "mask.pb", "maybe.pb", "small.pb"]
    assert arrays["small"] == Array("uint4", (3,))
    assert arrays["maybe"] is None


def test_arrays_and_onnx_values_go_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", mask=[True])
    saved(tmp_path, image=proto(np.zeros((1, 3), np.float32)))
    file, _ = of([tmp_path / "inputs.npz", tmp_path / "image.pb"], [IMAGE, MASK])
    assert members(file) == ["image.pb", "mask.npy"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": np.zeros((1, 3))}, "'image' is float32 and the array is float64: convert it"),
        ({"small": np.zeros(3, np.uint8)}, "'small' is uint4 .* uint8: give it as an ONNX value"),
        ({"x": np.array([{}], dtype=object)}, "'x' holds pickled objects"),
        ({}, "has no arrays"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, **values)
    with pytest.raises(UsageError, match=words):
        of([path], [IMAGE, SMALL])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image", proto(np.zeros((1, 3))), "'image' is float32 and the tensor is float64"),
        ("input_0", proto([True]), "'image' is float32 and the tensor is bool"),
        ("input_7", proto([True]), r"matches no input \(image, parts\)"),
        ("other", proto([True]), "name it input_0.pb"),
    ],
)
def test_onnx_values_that_do_not_fit(tmp_path: Path, name: str, value: Any, words: str) -> None:
    saved(tmp_path, **{name: value})
    with pytest.raises(UsageError, match=words):
        of([tmp_path / f"{name}.pb"], [IMAGE, SEQUENCE])


def test_files_that_hold_no_values(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    with pytest.raises(UsageError, match="cannot read"):
        of([path], [IMAGE])
    path.write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"neither an \.npz of arrays"):
        of([path], [IMAGE])
    (tmp_path / "image.pb").write_bytes(b"no value")
    with pytest.raises(UsageError, match="not an ONNX value of type float32"):
        of([tmp_path / "image.pb"], [IMAGE])
    with pytest.raises(UsageError, match=r"give a folder of \*\.pb"):
        of([saved(tmp_path / "empty")], [IMAGE])
    saved(
        tmp_path,
        image=proto(np.zeros((1, 3), np.float32)),
        input_0=proto(np.zeros((1, 3), np.float32), "image"),
    )
    with pytest.raises(UsageError, match="'image' is given twice"):
        of([tmp_path / "input_0.pb", tmp_path / "image.pb"], [IMAGE])


def test_an_encrypted_zip_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"data")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # flags of the file
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and of its entry in the directory
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"is neither an \.npz"):
        Given([path], tmp_path, {})
