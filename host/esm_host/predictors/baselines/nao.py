"""NAO: an autoencoder of operation sequences with a latency head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_host.encoding.base import Layout
from esm_host.predictors.networks import GraphColumns, GraphPredictor, Linears, Network


class NAOPredictor(GraphPredictor["_Autoencoder"]):
    """Encoder, predictor and decoder, trained together (Luo et al. 2018).

    "Neural Architecture Optimization": an LSTM reads the operations one by one. Its states, scaled
    to length 1, and their mean are the embedding. A small MLP predicts from the embedding. A second
    LSTM starts from the embedding and reads the previous operations. With attention to the
    encoder's states it predicts the next one. The loss is ``trade_off`` times the squared error
    plus the rest times the decoder's cross-entropy. The sequence is the nodes of the encoding
    ``graph`` between input and output, in its order. It need not follow the edges.

    Hyperparameters are set for speed and not tuned.

    Args:
        layout: Layout of the encoding ``graph``.
        hidden: Width of the states of both LSTMs.
        head: Width of the hidden layer of the latency head.
        trade_off: Share of the squared error in the loss.
        learning_rate: Hyperparameter of :class:`esm_host.predictors.mlp.MLPPredictor`, as the
            following ones.
    """

    def __init__(
        self,
        layout: Layout | None = None,
        hidden: int = 24,
        head: int = 48,
        trade_off: float = 0.8,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-5,
        epochs: int = 12,
        min_steps: int = 200,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.hidden = hidden
        self.head = head
        self.trade_off = trade_off
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.seed = seed

    def _network(self, encodings: NDArray[np.float32]) -> _Autoencoder:
        columns = self.graph(encodings.shape[1])
        return _Autoencoder(columns, self.hidden, self.head, self.trade_off)


class _LSTM(nn.Module):
    """Long short-term memory for every member; torch's has no axis for members."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_input = Linears(inputs, 4 * hidden)
        self.of_state = Linears(hidden, 4 * hidden)

    def forward(self, sequence: Tensor, state: Tensor) -> Tensor:
        """Return the states after each step, ``(members, n, steps, hidden)``.

        Args:
            sequence: Inputs, ``(members, n, steps, inputs)``.
            state: Initial state, ``(members, n, hidden)``.
        """
        cell, states = state, []
        gates_of_input = self.of_input(sequence)
        for step in range(sequence.shape[2]):
            gates = gates_of_input[:, :, step] + self.of_state(state)
            forget, enter, leave = torch.sigmoid(gates[..., : 3 * self.hidden]).chunk(3, dim=-1)
            cell = forget * cell + enter * torch.tanh(gates[..., 3 * self.hidden :])
            state = leave * torch.tanh(cell)
            states.append(state)
        return torch.stack(states, dim=2)


class _Autoencoder(Network):
    def __init__(self, columns: GraphColumns, hidden: int, head: int, trade_off: float) -> None:
        super().__init__()
        self.columns = columns
        self.hidden = hidden
        self.trade_off = trade_off
        self.encoder = _LSTM(columns.operations, hidden)
        self.head = nn.Sequential(Linears(hidden, head), nn.ReLU(), Linears(head, 1))
        self.decoder = _LSTM(columns.operations, hidden)
        self.output = Linears(2 * hidden, columns.operations)

    def forward(self, x: Tensor) -> Tensor:
        _, embedding = self.encode(self._sequence(x))
        return self._latency(embedding)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        sequence = self._sequence(x)
        states, embedding = self.encode(sequence)
        error = self._latency(embedding) - y
        logits = self.decode(sequence, states, embedding)
        # Binary per column, as there are several one-hot groups and nodes may be absent.
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, sequence, reduction="none")
        reconstruction = entropy.sum(dim=-1).mean(dim=-1)
        return self.trade_off * error * error + (1 - self.trade_off) * reconstruction

    def encode(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Return states ``(members, n, steps, hidden)`` and embeddings ``(members, n, hidden)``."""
        begin = sequence.new_zeros(*sequence.shape[:2], self.hidden)
        states = nn.functional.normalize(self.encoder(sequence, begin), dim=-1)
        return states, nn.functional.normalize(states.mean(dim=2), dim=-1)

    def decode(self, sequence: Tensor, states: Tensor, embedding: Tensor) -> Tensor:
        """Return logits of each operation from the previous ones, ``(members, n, steps, ...)``."""
        before = nn.functional.pad(sequence[:, :, :-1], (0, 0, 1, 0))
        decoded = self.decoder(before, embedding)
        attention = torch.softmax(decoded @ states.mT, dim=-1)
        output: Tensor = self.output(torch.cat([decoded, attention @ states], dim=-1))
        return output

    def _sequence(self, x: Tensor) -> Tensor:
        return self.columns.operations_of(x)[:, :, 1:-1]

    def _latency(self, embedding: Tensor) -> Tensor:
        output: Tensor = self.head(embedding)
        return output[..., 0]
