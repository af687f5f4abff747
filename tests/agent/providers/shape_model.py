"""Model with arithmetic on shapes, for tests of where nodes run."""

from pathlib import Path

from onnx import TensorProto, helper


def write_shape_model(path: Path, last: str = "") -> Path:
    """Write two nodes on data, one that reads a shape, and one that computes with it.

    Args:
        path: File to write.
        last: Name of the last node; empty for none.
    """
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], name="exp"),
        helper.make_node("Relu", ["e"], ["y"], name="relu"),
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Concat", ["s", "s"], ["z"], name=last, axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("z", TensorProto.INT64, [4]),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
