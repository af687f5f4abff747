"""What can be measured: architectures, search spaces and their ONNX graphs."""
