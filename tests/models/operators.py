"""Search space whose option is an operator, and what each computes in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from esm_models.graph import Network
from esm_models.space import Feature, SearchSpace

Weights = Mapping[str, Tensor]
Given = tuple[tuple[tuple[int, ...], str], ...]

IMAGE = (((2, 8, 6, 10), "float32"),)
SEQUENCE = (((2, 5, 16), "float32"),)
TOKENS = (((2, 5), "int64"),)
QKV = (((2, 5, 32), "float32"),) * 3
GROUPED = (((2, 5, 32), "float32"), ((2, 7, 16), "float32"), ((2, 7, 16), "float32"))
FLOATS, FLAGS = (((4, 5, 5), "float32"),), (((2, 1, 5, 5), "bool"),)


@dataclass(frozen=True)
class Operator:
    """Operator: its inputs, how it is added, and what it computes.

    Attributes:
        given: Shape and type of each input.
        add: Adds it to a network with the names of its inputs.
        torch: Computes it from the weights, by the ends of their names, and the inputs.
        method: Method of Network that it is a case of.
    """

    given: Given
    add: Callable[..., str]
    torch: Callable[..., Tensor]
    method: str


def attended(
    q: Tensor, k: Tensor, v: Tensor, heads: int = 4, kv_heads: int = 4, mask: Tensor | None = None
) -> Tensor:
    def split(x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, -1)).transpose(1, 2).repeat_interleave(heads // n, 1)

    q, k, v = split(q, heads), split(k, kv_heads), split(v, kv_heads)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def lower(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def turned(x: Tensor, positions: Tensor, heads: int) -> Tensor:
    """Turn pairs of features as complex numbers."""
    halves = x.unflatten(-1, (heads, 2, -1))
    size = 2 * halves.shape[-1]
    angles = positions[..., None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
    whole = torch.complex(halves[:, :, :, 0], halves[:, :, :, 1])
    whole = whole * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    return torch.stack([whole.real, whole.imag], dim=3).flatten(2)


def rotary(net: Network, x: str, positions: str) -> str:
    return net.rotary(x, 2, net.rotary_tables(positions, 8))


def biased(net: Network, q: str, k: str, v: str) -> str:
    """Bias by relative positions, from a table (Liu et al. 2021)."""
    table = net.parameter(9, 4)
    places = net.constant(np.arange(5)[:, None] - np.arange(5) + 4)
    bias = net.transpose(net.gather(table, places), (2, 0, 1))
    return net.attention(q, k, v, 4, mask=bias)


def class_token(net: Network, x: str) -> str:
    x = net.concat([net.parameter(1, 1, 16), x])
    return net.add(x, net.parameter(1, 6, 16))


def twice(net: Network, x: str) -> str:
    """Parameter as a matrix and as a summand."""
    weight = net.parameter(16, 16)
    return net.add(
        net.matmul(net.add(x, net.constant([1.0])), weight), net.slice(weight, 0, 5, axis=0)
    )


def tied(net: Network, tokens: str) -> str:
    """Output layer with the weights of the embedding."""
    table = net.parameter(20, 16)
    return net.matmul(net.gather(table, tokens), net.transpose(table, (1, 0)))


PLACES = torch.arange(5)[:, None] - torch.arange(5) + 4

OPERATORS: dict[str, Operator] = {
    "unpadded": Operator(
        IMAGE,
        lambda net, x: net.conv(x, 12, kernel=3, padding=0, norm=False),
        lambda w, x: F.conv2d(x, w["weight"], w["bias"]),
        "conv",
    ),
    "patches": Operator(
        IMAGE,
        lambda net, x: net.conv(x, 12, kernel=2, stride=2, padding=0, norm=False),
        lambda w, x: F.conv2d(x, w["weight"], w["bias"], stride=2),
        "conv",
    ),
    "grouped": Operator(
        IMAGE,
        lambda net, x: net.conv(x, 12, kernel=3, groups=4, padding=2, norm=False),
        lambda w, x: F.conv2d(x, w["weight"], w["bias"], padding=2, groups=4),
        "conv",
    ),
    "linear": Operator(
        SEQUENCE,
        lambda net, x: net.linear(x, 24),
        lambda w, x: x @ w["weight"] + w["bias"],
        "linear",
    ),
    "unbiased": Operator(
        SEQUENCE,
        lambda net, x: net.linear(x, 24, bias=False),
        lambda w, x: x @ w["weight"],
        "linear",
    ),
    "flat-unbiased": Operator(
        (((2, 16), "float32"),),
        lambda net, x: net.linear(x, 24, bias=False),
        lambda w, x: x @ w["weight"].T,
        "linear",
    ),
    "matmul": Operator(
        (((2, 3, 5, 8), "float32"), ((8, 6), "float32")),
        lambda net, a, b: net.matmul(a, b),
        lambda w, a, b: a @ b,
        "matmul",
    ),
    "softmax": Operator(
        SEQUENCE, lambda net, x: net.softmax(x), lambda w, x: x.softmax(-1), "softmax"
    ),
    "softmax-channels": Operator(
        IMAGE, lambda net, x: net.softmax(x, axis=1), lambda w, x: x.softmax(1), "softmax"
    ),
    "relu6": Operator(
        SEQUENCE,
        lambda net, x: net.relu6(net.multiply(x, net.constant([5.0]))),
        lambda w, x: F.relu6(5 * x),
        "relu6",
    ),
    "gelu": Operator(SEQUENCE, lambda net, x: net.gelu(x), lambda w, x: F.gelu(x), "gelu"),
    "silu": Operator(SEQUENCE, lambda net, x: net.silu(x), lambda w, x: F.silu(x), "silu"),
    "sigmoid": Operator(
        SEQUENCE, lambda net, x: net.sigmoid(x), lambda w, x: x.sigmoid(), "sigmoid"
    ),
    "tanh": Operator(SEQUENCE, lambda net, x: net.tanh(x), lambda w, x: x.tanh(), "tanh"),
    "layer_norm": Operator(
        SEQUENCE,
        lambda net, x: net.layer_norm(x, epsilon=1e-3),
        lambda w, x: F.layer_norm(x, (16,), w["scale"], w["bias"], 1e-3),
        "layer_norm",
    ),
    "rms_norm": Operator(
        SEQUENCE,
        lambda net, x: net.rms_norm(x),
        lambda w, x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["scale"],
        "rms_norm",
    ),
    "add-repeated": Operator(
        (((2, 5, 16), "float32"), ((16,), "float32")),
        lambda net, a, b: net.add(a, b),
        lambda w, a, b: a + b,
        "add",
    ),
    "multiply-repeated": Operator(
        (((2, 5, 1), "float32"), ((2, 5, 16), "float32")),
        lambda net, a, b: net.multiply(a, b),
        lambda w, a, b: a * b,
        "multiply",
    ),
    "transpose": Operator(
        IMAGE,
        lambda net, x: net.transpose(x, (0, 2, 3, 1)),
        lambda w, x: x.permute(0, 2, 3, 1),
        "transpose",
    ),
    "reshape": Operator(
        IMAGE, lambda net, x: net.reshape(x, (2, 8, -1)), lambda w, x: x.flatten(2), "reshape"
    ),
    "reshape-many": Operator(
        IMAGE,
        lambda net, x: net.reshape(x, (2, 4, 2, 3, 2, 5, 2)),
        lambda w, x: x.reshape(2, 4, 2, 3, 2, 5, 2),
        "reshape",
    ),
    "windows": Operator(
        IMAGE,
        lambda net, x: net.reshape(x, (2, 4, 120)),
        lambda w, x: x.reshape(2, 4, 120),
        "reshape",
    ),
    "split": Operator(
        SEQUENCE,
        lambda net, x: net.multiply(*net.split(x, 2)),
        lambda w, x: x[..., :8] * x[..., 8:],
        "split",
    ),
    "split-sizes": Operator(
        SEQUENCE,
        lambda net, x: net.concat(net.split(x, (1, 4), axis=1)[::-1]),
        lambda w, x: torch.cat([x[:, 1:], x[:, :1]], 1),
        "split",
    ),
    "slice": Operator(
        SEQUENCE,
        lambda net, x: net.slice(x, -1, axis=1),
        lambda w, x: x[:, -1:],
        "slice",
    ),
    "slice-middle": Operator(
        SEQUENCE, lambda net, x: net.slice(x, 2, 9), lambda w, x: x[..., 2:9], "slice"
    ),
    "gather": Operator(
        SEQUENCE,
        lambda net, x: net.gather(x, net.constant([3, 0]), axis=1),
        lambda w, x: x[:, [3, 0]],
        "gather",
    ),
    "gather-one": Operator(
        SEQUENCE,
        lambda net, x: net.gather(x, net.constant(2), axis=1),
        lambda w, x: x[:, 2],
        "gather",
    ),
    "embedding": Operator(
        TOKENS,
        lambda net, tokens: net.embedding(tokens, 20, 16),
        lambda w, tokens: w["weight"][tokens],
        "embedding",
    ),
    "tied": Operator(
        TOKENS,
        tied,
        lambda w, tokens: w["parameter1"][tokens] @ w["parameter1"].T,
        "parameter",
    ),
    "twice": Operator(
        SEQUENCE,
        twice,
        lambda w, x: (x + 1) @ w["parameter1"] + w["parameter1"][:5],
        "parameter",
    ),
    "floats-twice": Operator(
        SEQUENCE,
        lambda net, x: net.matmul(
            net.add(x, net.constant([1.0])),
            net.transpose(net.multiply(x, net.constant([2.0])), (0, 2, 1)),
        ),
        lambda w, x: (x + 1) @ (2 * x).transpose(1, 2),
        "constant",
    ),
    "class-token": Operator(
        SEQUENCE,
        class_token,
        lambda w, x: torch.cat([w["parameter1"].expand(2, 1, 16), x], 1) + w["parameter2"],
        "parameter",
    ),
    "constant": Operator(
        SEQUENCE,
        lambda net, x: net.add(x, net.constant([float(n) for n in range(16)])),
        lambda w, x: x + torch.arange(16),
        "constant",
    ),
    "concat-last": Operator(
        SEQUENCE,
        lambda net, x: net.concat([x, net.tanh(x)], axis=-1),
        lambda w, x: torch.cat([x, x.tanh()], -1),
        "concat",
    ),
    "expand": Operator(
        (((2, 5, 1), "float32"),),
        lambda net, x: net.expand(x, (2, 5, 16)),
        lambda w, x: x.expand(2, 5, 16),
        "expand",
    ),
    "reduce_mean": Operator(
        SEQUENCE,
        lambda net, x: net.reduce_mean(x, [1]),
        lambda w, x: x.mean(1),
        "reduce_mean",
    ),
    "reduce_mean-kept": Operator(
        IMAGE,
        lambda net, x: net.reduce_mean(x, [2, -1], keepdims=True),
        lambda w, x: x.mean((2, 3), keepdim=True),
        "reduce_mean",
    ),
    "mean-and-gelu": Operator(  # a newer opset has the axes as an input
        SEQUENCE,
        lambda net, x: net.gelu(net.reduce_mean(x, [1, 2])),
        lambda w, x: F.gelu(x.mean((1, 2))),
        "reduce_mean",
    ),
    "upsample": Operator(
        IMAGE,
        lambda net, x: net.upsample(x, 2),
        lambda w, x: F.interpolate(x, scale_factor=2),
        "upsample",
    ),
    "upsample-linear": Operator(
        IMAGE,
        lambda net, x: net.upsample(x, 3, "linear"),
        lambda w, x: F.interpolate(x, scale_factor=3, mode="bilinear"),
        "upsample",
    ),
    "attention": Operator(
        QKV,
        lambda net, q, k, v: net.attention(q, k, v, 4),
        lambda w, q, k, v: attended(q, k, v),
        "attention",
    ),
    "attention-causal": Operator(
        QKV,
        lambda net, q, k, v: net.attention(q, k, v, 4, causal=True),
        lambda w, q, k, v: attended(q, k, v, mask=lower(5, 5)),
        "attention",
    ),
    "attention-grouped": Operator(
        GROUPED,
        lambda net, q, k, v: net.attention(q, k, v, 4, 2),
        lambda w, q, k, v: attended(q, k, v, 4, 2),
        "attention",
    ),
    "attention-cached": Operator(  # the last queries of a longer sequence
        GROUPED,
        lambda net, q, k, v: net.attention(q, k, v, 4, 2, causal=True),
        lambda w, q, k, v: attended(q, k, v, 4, 2, lower(5, 7)),
        "attention",
    ),
    "attention-next": Operator(
        (((2, 1, 32), "float32"), *GROUPED[1:]),
        lambda net, q, k, v: net.attention(q, k, v, 4, 2, causal=True),
        lambda w, q, k, v: attended(q, k, v, 4, 2),
        "attention",
    ),
    "attention-biased": Operator(
        (*QKV, *FLOATS),
        lambda net, q, k, v, m: net.attention(q, k, v, 4, mask=m),
        lambda w, q, k, v, m: attended(q, k, v, mask=m),
        "attention",
    ),
    "attention-masked": Operator(
        (*QKV, *FLAGS),
        lambda net, q, k, v, m: net.attention(q, k, v, 4, mask=m),
        lambda w, q, k, v, m: attended(q, k, v, mask=m),
        "attention",
    ),
    "attention-biased-causal": Operator(
        (*QKV, *FLOATS),
        lambda net, q, k, v, m: net.attention(q, k, v, 4, mask=m, causal=True),
        lambda w, q, k, v, m: attended(q, k, v, mask=m.masked_fill(~lower(5, 5), -1e9)),
        "attention",
    ),
    "attention-masked-cached": Operator(
        (*GROUPED, ((2, 1, 1, 7), "bool")),
        lambda net, q, k, v, m: net.attention(q, k, v, 4, 2, mask=m, causal=True),
        lambda w, q, k, v, m: attended(q, k, v, 4, 2, m & lower(5, 7)),
        "attention",
    ),
    "attention-relative": Operator(
        QKV,
        biased,
        lambda w, q, k, v: attended(q, k, v, mask=w["parameter1"][PLACES].permute(2, 0, 1)),
        "attention",
    ),
    "attention-narrow-values": Operator(
        (*QKV[:2], ((2, 5, 12), "float32")),
        lambda net, q, k, v: net.attention(q, k, v, 4),
        lambda w, q, k, v: attended(q, k, v),
        "attention",
    ),
    "rotary": Operator(
        (((2, 5, 16), "float32"), ((2, 5), "int64")),
        rotary,
        lambda w, x, positions: turned(x, positions, 2),
        "rotary",
    ),
    "rotary-constant": Operator(
        SEQUENCE,
        lambda net, x: rotary(net, x, net.constant(np.tile(np.arange(5), (2, 1)))),
        lambda w, x: turned(x, torch.arange(5).expand(2, 5), 2),
        "rotary_tables",
    ),
}


class OneOperator(SearchSpace):
    """Networks of one operator each."""

    name = "one-operator"
    depths = ((1,),)
    features = (Feature("operator", "", tuple(OPERATORS)),)

    def network(self, net, units):
        operator = OPERATORS[units[0][0]["operator"]]
        given = [
            net.add_input(f"x{number}", shape, dtype)
            for number, (shape, dtype) in enumerate(operator.given, start=1)
        ]
        with net.scope("unit1.block1"):
            return operator.add(net, *given)


def values(name: str, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Inputs of an operator: each query of a mask reads a key."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[np.generic]] = {}
    for number, (shape, dtype) in enumerate(OPERATORS[name].given, start=1):
        if dtype == "float32":
            made[f"x{number}"] = rng.standard_normal(shape, dtype=np.float32)
        elif dtype == "int64":
            made[f"x{number}"] = rng.integers(0, 20, shape)
        else:
            made[f"x{number}"] = rng.random(shape) < 0.7
            made[f"x{number}"][..., 0] = True
    return made


def expected(name: str, weights: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    ends = {key.rpartition(".")[2]: torch.from_numpy(array) for key, array in weights.items()}
    given = [torch.from_numpy(array) for array in values(name).values()]
    result: Tensor = OPERATORS[name].torch(ends, *given)
    return np.asarray(result.numpy())
