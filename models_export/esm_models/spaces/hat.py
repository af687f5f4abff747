"""HAT's search space of encoder-decoder transformers (Wang et al. 2020, arXiv 2005.14187)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit

CHANNELS = 512
"""Channels of all heads of an attention together."""

_EMBEDDING = Feature("embedding", "d", (512, 640))
_FFN = Feature("ffn", "f", (1024, 2048, 3072))
_HEADS = Feature("heads", "h", (4, 8))
_CROSS_HEADS = Feature("cross_heads", "c", (4, 8))
_CROSS_LAYERS = Feature("cross_layers", "l", (1, 2, 3))

ENCODER = Unit(depths=(6,), features=(_FFN, _HEADS), choices=(_EMBEDDING,))
DECODER = Unit(
    depths=(1, 2, 3, 4, 5, 6),
    features=(_FFN, _HEADS, _CROSS_HEADS, _CROSS_LAYERS),
    choices=(_EMBEDDING,),
)


class HATSpace(SearchSpace):
    """HAT's space for WMT'14 En-De: 6 encoder and 1 to 6 decoder layers; 4.18e14 networks.

    Encoder and decoder choose their embedding (512 or 640), and every layer its feed-forward size
    (1024, 2048 or 3072) and heads of self-attention (4 or 8). A decoder layer also chooses its
    heads of attention to the encoder (4 or 8), and how many of the last encoder layers it reads
    (1, 2 or 3; -1, 1 and 2 in HAT's files). The outputs of these layers are joined along the
    sequence. All heads of an attention have 512 channels together, normalisation follows the
    sublayers, and positions are sinusoids. Activations are ReLU.

    The graph is the whole network over a source and a target of :attr:`resolution` tokens each, 30
    by default as in HAT's measurements. All target positions are computed at once (teacher
    forcing). HAT times the decoder step by step instead: see :class:`HATEncoderSpace` and
    :class:`HATStepSpace`. ``width_mult`` scales embeddings, feed-forward sizes and the channels of
    heads.

    Ours are: source, target and output have a table of their own each, where HAT shares one; the
    wavelengths of the positions are those of Vaswani et al. 2017.
    """

    name = "hat"
    units: ClassVar[tuple[Unit, ...]] = (ENCODER, DECODER)
    default_resolution = 30
    min_resolution = 1
    vocabulary: ClassVar[int] = 32_768
    """Number of tokens that both languages share, as published."""

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        encoder, decoder = units
        outputs = self._encoder(net, encoder)
        with net.scope("target"):
            x = self._embedded(net, "target", decoder, range(self.resolution))
        for number, layer in enumerate(decoder, start=1):
            with net.scope(f"unit2.block{number}"):
                query, key, value = net.split(net.linear(x, 3 * self._inner), 3)
                heads = int(layer["heads"])
                x = self._added(net, x, net.attention(query, key, value, heads, causal=True))
                last = outputs[: -1 - int(layer["cross_layers"]) : -1]
                read = net.concat(last, axis=1) if len(last) > 1 else last[0]
                key, value = net.split(net.linear(read, 2 * self._inner), 2)
                x = self._cross_attended(net, x, key, value, layer)
        return self._head(net, x)

    def _encoder(self, net: Network, unit: Chosen[Option]) -> list[str]:
        """Add the encoder, and return the outputs of its layers."""
        with net.scope("source"):
            x = self._embedded(net, "source", unit, range(self.resolution))
        outputs = []
        for number, layer in enumerate(unit, start=1):
            with net.scope(f"unit1.block{number}"):
                query, key, value = net.split(net.linear(x, 3 * self._inner), 3)
                x = self._added(net, x, net.attention(query, key, value, int(layer["heads"])))
                x = self._fed_forward(net, x, layer)
            outputs.append(x)
        return outputs

    def _head(self, net: Network, x: str) -> str:
        with net.scope("head"):
            return net.linear(x, self.vocabulary, bias=False)

    def _embedded(
        self, net: Network, name: str, unit: Chosen[Option], positions: Sequence[int]
    ) -> str:
        """Add an input of tokens at these positions, and return their embeddings."""
        width = self.channels(int(unit["embedding"]))
        tokens = net.add_input(name, (self.batch, len(positions)), "int64")
        x = net.embedding(tokens, self.vocabulary, width)
        x = net.multiply(x, net.constant(math.sqrt(width)))
        cosines, sines = net.rotary_tables(net.constant(np.array([positions])), width)
        return net.add(x, net.concat([sines, cosines], axis=-1))

    def _cross_attended(self, net: Network, x: str, key: str, value: str, layer: Option) -> str:
        """Add the attention to the encoder, and the feed-forward layers after it."""
        query = net.linear(x, self._inner)
        x = self._added(net, x, net.attention(query, key, value, int(layer["cross_heads"])))
        return self._fed_forward(net, x, layer)

    def _fed_forward(self, net: Network, x: str, layer: Option) -> str:
        hidden = self.channels(int(layer["ffn"]))
        return self._added(net, x, net.relu(net.linear(x, hidden)))

    def _added(self, net: Network, x: str, y: str) -> str:
        """Project a sublayer's result, add it to the sublayer's input, and normalise."""
        return net.layer_norm(net.add(x, net.linear(y, net.shape(x)[-1])))

    @property
    def _inner(self) -> int:
        return self.channels(CHANNELS)


class HATEncoderSpace(HATSpace):
    """Encoder of :class:`HATSpace` alone, over a source of :attr:`resolution` tokens."""

    name = "hat-encoder"
    units = (ENCODER,)

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        return self._encoder(net, units[0])[-1]


class HATStepSpace(HATSpace):
    """One step of the decoder of :class:`HATSpace`: the last of :attr:`resolution` target tokens.

    The inputs are a token, and for every layer the keys and values of the tokens before, and those
    of the encoder's layers that it reads. The keys and values with those of the new token are
    further outputs. The time of a translation is about that of the encoder and of a step for each
    token.
    """

    name = "hat-step"
    units = (DECODER,)
    min_resolution = 2

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        (decoder,) = units
        with net.scope("target"):
            x = self._embedded(net, "target", decoder, [self.resolution - 1])
        for number, layer in enumerate(decoder, start=1):
            with net.scope(f"unit1.block{number}"):
                query, *new = net.split(net.linear(x, 3 * self._inner), 3)
                known = {}
                for part, tensor in zip(("key", "value"), new, strict=True):
                    past = self._cache(net, f"past.{number}.{part}", self.resolution - 1)
                    known[part] = net.concat([past, tensor])
                    net.add_output(f"present.{number}.{part}", known[part])
                heads = int(layer["heads"])
                read = net.attention(query, known["key"], known["value"], heads)
                x = self._added(net, x, read)
                length = int(layer["cross_layers"]) * self.resolution
                key = self._cache(net, f"source.{number}.key", length)
                value = self._cache(net, f"source.{number}.value", length)
                x = self._cross_attended(net, x, key, value, layer)
        return self._head(net, x)

    def _cache(self, net: Network, name: str, length: int) -> str:
        """Add an input of keys or values."""
        return net.add_input(name, (self.batch, length, self._inner))
