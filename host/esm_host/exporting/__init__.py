"""Export of architectures for other tools: ONNX with weights, torch modules to train, JSON."""
