"""Architectures, search spaces and their ONNX graphs."""
