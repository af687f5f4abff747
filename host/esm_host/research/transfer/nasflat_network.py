"""Network of NASFLAT, which joins operations and devices before it reads the graph.

Akhauri and Abdelfattah 2024, "On Latency Predictors for Neural Architecture Search".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OPERATION = 24
DEVICE = 24
NODE = 24
HIDDEN = 96
REFINEMENT = (128, 128)
UPDATE = 128
MAIN = (128, 128, 128)
SUPPLEMENT = (128, 128)
SUPPLEMENT_OUT = 48
HEAD = (200, 200, 200)
DROPOUT = 0.1
"""Widths and dropout of Table 20, else of the authors' repository.

The two embeddings share the table's 48, as do the two halves of a node.
"""

LAYERS = ("ensemble", "dgf", "gat")
"""Layers of a graph network: dense graph flow, graph attention, or the mean of both."""


@dataclass(frozen=True)
class Architectures:
    """Graphs as tensors.

    Attributes:
        operations: Features of each node, ``(n, nodes, features)``.
        incoming: Edges from column to row, ``(n, nodes, nodes)``, or ``(1, nodes, nodes)`` if they
            are the same for all. None if each node has an edge to itself only.
        count: Count of each node, ``(n, nodes)``, 0 or 1 with edges. None if each is 1. Without
            edges, nodes of one operation are equal.
        supplement: Supplement, ``(n, d)``; None if there is none.
    """

    operations: Tensor
    incoming: Tensor | None
    count: Tensor | None = None
    supplement: Tensor | None = None

    def __len__(self) -> int:
        return len(self.operations)

    def take(self, rows: Tensor) -> Architectures:
        """Return some of them, in that order."""
        incoming = self.incoming
        if incoming is not None and len(incoming) > 1:
            incoming = incoming[rows]
        return Architectures(
            self.operations[rows],
            incoming,
            None if self.count is None else self.count[rows],
            None if self.supplement is None else self.supplement[rows],
        )


class NasflatNetwork(nn.Module):
    """Scores that rank architectures on a device, higher for slower (section 3, figure 3).

    A node's operation and the device each have an embedding. Both pass side by side through a small
    graph network. From them and the state of the output node an MLP makes the embedding of the
    operation on this device in this architecture (section 5.1). With these the main graph network
    reads the graph. The mean of its nodes and the embedded supplement are the input of the head.
    Initial node states are equal, except for that of the input.

    As in the authors' repository, beyond the paper: the output node's state passes three linear
    layers before it is joined. The input has no operation, the output has one of its own, and both
    have the device's embedding. The input is left out of the mean.

    Args:
        features: Number of features of a node.
        devices: Number of devices.
        supplement: Number of columns of the supplement, 0 if there is none.
        operation_wise: Whether the device's embedding joins those of the operations; otherwise it
            joins the head.
        layers: Name in :data:`LAYERS`.
    """

    def __init__(
        self,
        features: int,
        devices: int,
        supplement: int = 0,
        operation_wise: bool = True,
        layers: str = LAYERS[0],
    ) -> None:
        super().__init__()
        self.operation_wise = operation_wise
        joint = OPERATION + DEVICE * operation_wise
        self.operation = nn.Linear(features, OPERATION, bias=False)
        nn.init.normal_(self.operation.weight)
        self.device = nn.Embedding(devices, DEVICE)
        self.output = nn.Parameter(torch.randn(OPERATION))
        self.nodes = nn.Embedding(2, NODE)  # the input, and all others
        nn.init.zeros_(self.nodes.weight[1:].detach())
        self.hidden = nn.Linear(NODE, HIDDEN)

        self.refinement = GraphFlow(HIDDEN, REFINEMENT, joint, layers)
        width = REFINEMENT[-1]
        self.summary = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, width),
        )
        self.update = nn.Linear(joint + width, UPDATE)
        self.refined = nn.Linear(UPDATE, joint)
        self.main = GraphFlow(HIDDEN, MAIN, joint, layers)

        self.supplement = _layers(supplement, SUPPLEMENT, SUPPLEMENT_OUT) if supplement else None
        read = MAIN[-1] + SUPPLEMENT_OUT * bool(supplement) + DEVICE * (not operation_wise)
        self.head = _layers(read, HEAD, 1)

    def forward(self, architectures: Architectures, device: Tensor) -> Tensor:
        """Return scores, ``(n,)``, of architectures on devices by number, ``(n,)``."""
        incoming, count = architectures.incoming, architectures.count
        nodes = architectures.operations.shape[1]
        start = self.hidden(self.nodes((torch.arange(nodes) > 0).long()))[None]

        inner = self.operation(architectures.operations[:, 1:-1])
        ends = inner.new_zeros(len(inner), 1, OPERATION)
        inner = torch.cat([ends, inner, self.output.expand_as(ends)], dim=1)
        own = self.device(device)
        operation = inner
        if self.operation_wise:
            operation = torch.cat([inner, own[:, None].expand(-1, nodes, -1)], dim=-1)

        state = self.refinement.output_node(start, incoming, operation, count)
        operation = self._refine(operation, self.summary(state))
        state = self.main(start, incoming, operation, count)[:, 1:]
        if count is None:
            read = state.mean(dim=1)
        else:
            share = count[:, 1:] / count[:, 1:].sum(dim=1, keepdim=True)
            read = (share[:, None] @ state)[:, 0]
        if self.supplement is not None:
            read = torch.cat([read, self.supplement(architectures.supplement)], dim=-1)
        if not self.operation_wise:
            read = torch.cat([read, own], dim=-1)
        scores: Tensor = self.head(read)
        return scores[:, 0]

    def _refine(self, operation: Tensor, summary: Tensor) -> Tensor:
        # One layer on both; the summary is the same for all nodes.
        old, new = self.update.weight.split([operation.shape[-1], summary.shape[-1]], dim=1)
        joined = nn.functional.linear(operation, old) + nn.functional.linear(
            summary, new, self.update.bias
        ).unsqueeze(1)
        refined: Tensor = self.refined(torch.relu(joined))
        return refined


class GraphFlow(nn.Module):
    """Layers of dense graph flow, graph attention or the mean of both (A.3.1, equations 1 to 3).

    With adjacency A and embeddings O of the operations, a layer's states X become

        flow       sigmoid(O W_o) * (A X W_f) + X W_f + b_f
        attention  LayerNorm(sigmoid(O W_p) * (softmax(LeakyReLU(A * S)) X W)), where S_ij is the
        weighted sum of products a . (X_i W * X_j W).

    As in equation 2, a missing edge has a score of 0 in the softmax. There is a ReLU between
    layers.

    Args:
        inputs: Width of the input states.
        widths: Width of the states after each layer.
        operation: Width of the operations' embeddings.
        layers: Name in :data:`LAYERS`.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], operation: int, layers: str = LAYERS[0]
    ) -> None:
        super().__init__()
        made = [
            _Layer(before, width, operation, layers)
            for before, width in zip([inputs, *widths[:-1]], widths, strict=True)
        ]
        self.last = made.pop()
        self.layers = nn.ModuleList(made)

    def forward(
        self, state: Tensor, incoming: Tensor | None, operation: Tensor, count: Tensor | None
    ) -> Tensor:
        """Convert states ``(n or 1, nodes, inputs)`` to ``(n, nodes, widths[-1])``."""
        for layer in self.layers:
            state = torch.relu(layer(state, incoming, operation, count))
        last: Tensor = self.last(state, incoming, operation, count)
        return last

    def output_node(
        self, state: Tensor, incoming: Tensor | None, operation: Tensor, count: Tensor | None
    ) -> Tensor:
        """Return :meth:`forward` of the last node, ``(n, widths[-1])``, at less cost."""
        for layer in self.layers:
            state = torch.relu(layer(state, incoming, operation, count))
        return self.last.output_node(state, incoming, operation, count)[:, 0]


class _Layer(nn.Module):
    def __init__(self, inputs: int, width: int, operation: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.flow_gate = nn.Linear(operation, width)
        self.flow = nn.Parameter(_uniform(inputs, width, fan=width))
        self.flow_bias = nn.Parameter(_uniform(width, fan=width))
        self.attention_gate = nn.Linear(operation, width)
        self.attention = nn.Parameter(_uniform(inputs, width, fan=inputs))
        self.score = nn.Parameter(_uniform(width, fan=width))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, state: Tensor, incoming: Tensor | None, operation: Tensor, count: Tensor | None
    ) -> Tensor:
        own = state @ self.flow
        attended = state @ self.attention
        if incoming is None:
            scores = (attended * self.score * attended).sum(dim=-1)
            taken = _attend_self(scores, attended, attended, count)
            return self._mean(own, own, taken, operation)
        scores = (attended * self.score) @ attended.mT
        taken = _softmax(scores, incoming, count) @ attended
        return self._mean(own, incoming @ own, taken, operation)

    def output_node(
        self, state: Tensor, incoming: Tensor | None, operation: Tensor, count: Tensor | None
    ) -> Tensor:
        """Return the result of :meth:`forward` for the last node, ``(n, 1, width)``.

        Products are reordered, so that those with the weights are of one node instead of all.
        """
        last, operation = state[:, -1:], operation[:, -1:]
        own = last @ self.flow
        attended = last @ self.attention
        if incoming is None:
            scores = (attended * self.score * attended).sum(dim=-1)
            taken = _attend_self(scores, last, state, count) @ self.attention
            return self._mean(own, own, taken, operation)
        incoming = incoming[:, -1:]
        scores = ((attended * self.score) @ self.attention.mT) @ state.mT
        taken = (_softmax(scores, incoming, count) @ state) @ self.attention
        return self._mean(own, (incoming @ state) @ self.flow, taken, operation)

    def _mean(self, own: Tensor, flowing: Tensor, taken: Tensor, operation: Tensor) -> Tensor:
        if self.kind == "dgf":
            return self._flow(own, flowing, operation) + self.flow_bias
        if self.kind == "gat":
            gated: Tensor = self.norm(torch.sigmoid(self.attention_gate(operation)) * taken)
            return gated
        flow = self._flow(own, flowing, operation)
        taken = torch.sigmoid(self.attention_gate(operation)) * taken
        # Both biases and the factor of one half are folded into the norm.
        attention = nn.functional.layer_norm(
            taken,
            self.norm.normalized_shape,
            self.norm.weight / 2,
            (self.norm.bias + self.flow_bias) / 2,
            self.norm.eps,
        )
        return torch.add(attention, flow, alpha=0.5)

    def _flow(self, own: Tensor, flowing: Tensor, operation: Tensor) -> Tensor:
        return torch.addcmul(own, torch.sigmoid(self.flow_gate(operation)), flowing)


def _uniform(*shape: int, fan: int) -> Tensor:
    return torch.empty(shape).uniform_(-(fan**-0.5), fan**-0.5)


def _softmax(scores: Tensor, incoming: Tensor, count: Tensor | None) -> Tensor:
    scores = nn.functional.leaky_relu(scores * incoming)
    if count is not None:
        scores = scores.masked_fill(count[:, None] == 0, -torch.inf)
    return torch.softmax(scores, dim=-1)


def _attend_self(scores: Tensor, own: Tensor, states: Tensor, count: Tensor | None) -> Tensor:
    """Return the attention of nodes with an edge to themselves only, ``(n, some, width)``.

    Their own states have scores ``scores``, all other states have scores of 0.

    Args:
        scores: Scores of the nodes' own states, ``(n, some)``.
        own: Own states, ``(n, some, width)``.
        states: States of all nodes, ``(n, nodes, width)``.
        count: Count of each node, ``(n, nodes)``; None if each is 1.
    """
    if count is None:
        total, together = states.new_full((1, 1), states.shape[1]), states.sum(1, keepdim=True)
    else:
        total, together = count.sum(1, keepdim=True), count[:, None] @ states
    scores = nn.functional.leaky_relu(scores)
    most = scores.detach().clamp(min=0)  # keeps exponentials below 1
    self_weight, other_weight = torch.exp(scores - most), torch.exp(-most)
    weights = self_weight + other_weight * (total - 1)
    attended = ((self_weight - other_weight) / weights)[..., None] * own
    return torch.addcmul(attended, (other_weight / weights)[..., None], together)


def _layers(inputs: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(DROPOUT)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def draw_pairs(latency: Tensor, per_sample: int) -> tuple[Tensor, Tensor]:
    """Return random pairs of samples that differ: the slower ones, and the faster ones.

    There are at most ``per_sample`` times as many as samples, without repetitions.
    """
    n = len(latency)
    one, other = torch.triu_indices(n, n, 1)
    differ = torch.nonzero(latency[one] != latency[other])[:, 0]
    chosen = differ[torch.randperm(len(differ))[: per_sample * n]]
    one, other = one[chosen], other[chosen]
    ordered = latency[one] > latency[other]
    return torch.where(ordered, one, other), torch.where(ordered, other, one)


def pairwise_hinge(scores: Tensor, slower: Tensor, faster: Tensor, margin: float) -> Tensor:
    """Return the mean shortfall of the score differences to ``margin``.

    The loss is that of Ning et al. 2022, "TA-GATES".
    """
    return torch.relu(margin - (scores[slower] - scores[faster])).mean()
