"""Multilayer perceptron, the regression model of ESM (III-A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from esm_host.predictors.base import Predictor, Samples
from esm_host.predictors.networks import batches, one_thread

_CHUNK = 4096  # architectures whose activations stay in the processor's cache


class MLPPredictor(Predictor):
    """Three hidden layers of 64, MSE, Adam (learning rate 0.01, weight decay 1e-4).

    The paper leaves the rest open. We use ReLU and standardised inputs. Targets are divided by
    their mean, so that one learning rate fits microseconds and seconds. There are batches of 64,
    100 epochs and at least 1,000 steps. The learning rate falls to zero along a cosine. These
    choices were made on public latencies of the Once-for-all space, so figures of that space are
    optimistic.

    Args:
        hidden: Width of the hidden layers.
        layers: Number of hidden layers.
        learning_rate: Initial learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        epochs: Smallest number of epochs.
        min_steps: Smallest number of steps; small data sets get more epochs.
        batch_size: Samples per step.
        gain: Factor of the initial weights, whose standard deviation is ``gain / sqrt(inputs)``.
            The default is PyTorch's. Deep networks with ReLU need a gain near the square root of 2
            (He et al. 2015, "Delving Deep into Rectifiers").
        standardise: Whether inputs are scaled to mean 0 and standard deviation 1.
        cosine: Whether the learning rate falls to zero.
        seed: Random seed of the initial weights and the batches.
    """

    def __init__(
        self,
        hidden: int = 64,
        layers: int = 3,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-4,
        epochs: int = 100,
        min_steps: int = 1000,
        batch_size: int = 64,
        gain: float = 3**-0.5,
        standardise: bool = True,
        cosine: bool = True,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.gain = gain
        self.standardise = standardise
        self.cosine = cosine
        self.seed = seed

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        self._fit_all([self], [(encodings, latency_ms, weights)])

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        """Train all networks in the same steps, as small networks cost per step."""
        with one_thread():
            _train(predictors, samples)

    def prepare(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the network and return the samples in the units of the data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = self._network(encodings.shape[1])
        self.mean_ = np.zeros(encodings.shape[1], dtype=np.float32)
        self.scale_ = np.ones(encodings.shape[1], dtype=np.float32)
        if self.standardise:
            self.mean_ = encodings.mean(axis=0)
            sd = encodings.std(axis=0)
            self.scale_ = np.where(sd > 0, sd, 1).astype(np.float32)
        self.unit_ms_ = float(np.average(latency_ms, weights=weights))
        *hidden, output = self.linears()
        with torch.no_grad():
            for layer in hidden:
                layer.weight *= self.gain * 3**0.5
        # The output starts at the mean: the first steps then learn differences, not the offset.
        nn.init.ones_(output.bias)
        x = torch.from_numpy((encodings - self.mean_) / self.scale_)
        y = torch.from_numpy((latency_ms / self.unit_ms_).astype(np.float32))
        return x, y

    def linears(self) -> list[nn.Linear]:
        """Return the network's linear layers, first to last."""
        return [layer for layer in self.network_ if isinstance(layer, nn.Linear)]

    def _predict(self, encodings: NDArray[np.float32]) -> NDArray[np.float64]:
        result = np.empty(len(encodings))
        with torch.inference_mode():
            for begin in range(0, len(encodings), _CHUNK):
                rows = slice(begin, begin + _CHUNK)
                x = torch.from_numpy((encodings[rows] - self.mean_) / self.scale_)
                result[rows] = self.network_(x)[:, 0].numpy()
        return result * self.unit_ms_

    def last_inputs(self, encodings: ArrayLike) -> NDArray[np.float64]:
        """Return the inputs of the output layer and a constant for its bias, ``(n, hidden + 1)``.

        Args:
            encodings: Encodings, ``(n, d)``.

        Raises:
            ValueError: as :meth:`predict`.
        """
        x = torch.from_numpy((self._ready(encodings) - self.mean_) / self.scale_)
        with torch.inference_mode():
            last = self.network_[:-1](x).numpy().astype(np.float64)
        return np.concatenate([last, np.ones((len(x), 1))], axis=1)

    def last_weights(self) -> NDArray[np.float64]:
        """Return the weights of the output layer, bias last, ``(hidden + 1,)``.

        Their product with :meth:`last_inputs` is the latency, ms.
        """
        output = self.linears()[-1]
        parts = [output.weight.detach().numpy()[0], output.bias.detach().numpy()]
        return np.asarray(np.concatenate(parts) * self.unit_ms_, dtype=np.float64)

    def _network(self, features: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(self.layers):
            layers += [nn.Linear(features, self.hidden), nn.ReLU()]
            features = self.hidden
        return nn.Sequential(*layers, nn.Linear(features, 1))

    def to_onnx(self) -> bytes:
        """Return the fitted predictor as ONNX.

        The input is ``encoding`` (n, d), the output ``latency_ms`` (n,).
        """
        from onnx import TensorProto, helper, numpy_helper

        values = {"mean": self.mean_, "scale": self.scale_}
        nodes = [
            helper.make_node("Sub", ["encoding", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["x0"]),
        ]
        linears = self.linears()
        for index, layer in enumerate(linears):
            weight, bias = f"weight{index}", f"bias{index}"
            values[weight] = layer.weight.detach().numpy()
            values[bias] = layer.bias.detach().numpy()
            nodes.append(
                helper.make_node("Gemm", [f"x{index}", weight, bias], [f"y{index}"], transB=1)
            )
            nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
        nodes.pop()  # no activation after the last layer
        values["unit_ms"] = np.array(self.unit_ms_, dtype=np.float32)
        values["axis"] = np.array([1], dtype=np.int64)
        last = f"y{len(linears) - 1}"
        nodes.append(helper.make_node("Squeeze", [last, "axis"], ["relative"]))
        nodes.append(helper.make_node("Mul", ["relative", "unit_ms"], ["latency_ms"]))
        graph = helper.make_graph(
            nodes,
            "latency_predictor",
            [helper.make_tensor_value_info("encoding", TensorProto.FLOAT, ["n", len(self.mean_)])],
            [helper.make_tensor_value_info("latency_ms", TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        data: bytes = model.SerializeToString()
        return data


def _train(members: Sequence[MLPPredictor], samples: Sequence[Samples]) -> None:
    """Train each network on its own samples, all of them in the same steps.

    The networks' hyperparameters are those of the first, except for the seed. Their numbers of
    samples may differ a little, as those of folds do. An epoch is as long as the largest needs.
    """
    first = members[0]
    data = [member.prepare(*part) for member, part in zip(members, samples, strict=True)]
    sizes = [len(x) for x, _ in data]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    w = torch.from_numpy(np.concatenate([part[2] for part in samples]).astype(np.float32))
    layers = list(zip(*(member.linears() for member in members), strict=True))
    # (members, inputs, outputs) and (members, 1, outputs), as batched products want them.
    weights = [torch.stack([each.weight.detach().T for each in layer]) for layer in layers]
    biases = [torch.stack([each.bias.detach()[None] for each in layer]) for layer in layers]
    parameters = [tensor.requires_grad_() for tensor in (*weights, *biases)]
    optimizer = torch.optim.Adam(
        parameters, lr=first.learning_rate, weight_decay=first.weight_decay, fused=True
    )
    steps = -(-max(sizes) // first.batch_size)
    epochs = max(first.epochs, -(-first.min_steps // steps))
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
        if first.cosine
        else None
    )
    for rows in batches(sizes, [member.seed for member in members], first.batch_size, epochs):
        optimizer.zero_grad()
        out = x[rows]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            out = torch.relu(torch.baddbmm(bias, out, weight))
        error = torch.baddbmm(biases[-1], out, weights[-1])[..., 0] - y[rows]
        # The sum over members: each one's gradient is that of its own mean.
        (w[rows] * error * error).mean(dim=1).sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            for number, each in enumerate(layer):
                each.weight.copy_(weight[number].T)
                each.bias.copy_(bias[number, 0])
    for member in members:
        member.network_.eval()
