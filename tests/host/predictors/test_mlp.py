"""The multilayer perceptron: as in the paper, and the same once exported."""

import numpy as np
import onnx
import onnxruntime

from esm_host.predictors.mlp import MLPPredictor

RNG = np.random.default_rng(0)
X = RNG.integers(0, 5, (240, 12)).astype(np.float32)
Y = 0.3 + X @ RNG.uniform(0.01, 0.2, 12)


def test_it_is_the_papers() -> None:
    predictor = MLPPredictor(epochs=1, min_steps=1).fit(X, Y)
    shapes = [tuple(p.shape) for p in predictor.network_.parameters()]
    assert shapes[::2] == [(64, 12), (64, 64), (64, 64), (1, 64)]
    assert (predictor.learning_rate, predictor.weight_decay) == (0.01, 1e-4)


def test_as_onnx_it_predicts_the_same() -> None:
    predictor = MLPPredictor(epochs=20, min_steps=1).fit(X, Y)
    expected = predictor.predict(X)
    data = predictor.to_onnx()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(["latency_ms"], {"encoding": X})
    np.testing.assert_allclose(got, expected, rtol=1e-5)
