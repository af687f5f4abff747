"""The networks that come with the program are the ones that they are called."""

import math

import onnx
import pytest

from esm_models.examples import FOLDER, examples


def test_the_files_are_fresh() -> None:
    committed = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert committed == examples(), "run `make references`"


@pytest.mark.parametrize(
    ("name", "millions"),
    # As torchvision counts them, without the second parameter of each batch normalisation.
    [("mobilenetv3", 5.47), ("resnet18", 11.685), ("resnet50", 25.53)],
)
def test_they_have_the_known_parameters(name: str, millions: float) -> None:
    graph = onnx.load(FOLDER / f"{name}.onnx", load_external_data=False).graph
    count = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    assert count / 1e6 == pytest.approx(millions, rel=0.03 if name == "mobilenetv3" else 1e-3)
