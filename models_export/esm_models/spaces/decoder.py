"""Decoder language models in the manner of Llama: prefill of a sequence, decode of one token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from esm_models.graph import Axis, Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit, Value

HEAD = 64


class DecoderSpace(SearchSpace):
    """8 to 16 blocks, each with its own heads, heads of keys and values, and FFN; 3.86e20 networks.

    A block is Llama's (Touvron et al. 2023): RMSNorm, rotary positions, attention with grouped
    heads of keys and values (Ainslie et al. 2023), SwiGLU, no biases. The network chooses its
    hidden size (512, 768 or 1024). Every block chooses its heads (8, 12 or 16, of 64 channels
    each), heads of keys and values (2 or 4) and the size of its FFN (1536, 2304 or 3072). No paper
    has this space: the numbers are our choice, in the range of published models of 0.1e9
    parameters. Tables of the first and the last layer are separate. ``width_mult`` scales the
    hidden size, the channels of heads and the FFN, and not the :attr:`vocabulary`. The resolution
    has no effect.
    """

    units = (
        Unit(
            depths=tuple(range(8, 17)),
            features=(
                Feature("heads", "h", (8, 12, 16)),
                Feature("kv_heads", "g", (2, 4)),
                Feature("ffn", "f", (1536, 2304, 3072)),
            ),
        ),
    )
    choices = (Feature("hidden", "d", (512, 768, 1024)),)
    vocabulary = 32_000

    @abstractmethod
    def lengths(self, contexts: Mapping[str, Value]) -> tuple[int, int | None]:
        """Return the number of new tokens, and of those in the cache; None without a cache."""

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        hidden, size = self.channels(int(units["hidden"])), self.channels(HEAD)
        sequence, past = self.lengths(units.option.values)
        with net.scope("stem"):
            tokens = net.add_input("tokens", (self.batch, sequence), "int64")
            positions = net.add_input("positions", (self.batch, sequence), "int64")
            x = net.embedding(tokens, self.vocabulary, hidden)
            tables = net.rotary_tables(positions, size)
        for number, block in enumerate(units[0], start=1):
            with net.scope(f"unit1.block{number}"):
                heads, kv_heads = int(block["heads"]), int(block["kv_heads"])
                y = net.rms_norm(x)
                query, key, value = (
                    net.linear(y, each * size, bias=False) for each in (heads, kv_heads, kv_heads)
                )
                query = net.rotary(query, heads, tables)
                key = self._cached(net, net.rotary(key, kv_heads, tables), f"{number}.key", past)
                value = self._cached(net, value, f"{number}.value", past)
                y = net.attention(query, key, value, heads, kv_heads, causal=True)
                x = net.add(x, net.linear(y, hidden, bias=False))
                x = net.add(x, self._swiglu(net, net.rms_norm(x), int(block["ffn"])))
        with net.scope("head"):
            if sequence != 1 or isinstance(sequence, Axis):
                x = net.slice(x, -1, axis=1)  # the next token follows from the last one
            return net.linear(net.rms_norm(x), self.vocabulary, bias=False)

    def _cached(self, net: Network, new: str, name: str, past: int | None) -> str:
        """Append keys or values to those of the cache, if there is one, and give them out."""
        if past is not None:
            batch, _, width = net.shape(new)
            new = net.concat([net.add_input(f"past.{name}", (batch, past, width)), new])
        net.add_output(f"present.{name}", new)
        return new

    def _swiglu(self, net: Network, x: str, ffn: int) -> str:
        """Add the FFN with a gate (Shazeer 2020)."""
        gate, up = (net.linear(x, self.channels(ffn), bias=False) for _ in range(2))
        y = net.multiply(net.silu(gate), up)
        return net.linear(y, net.shape(x)[-1], bias=False)


class PrefillSpace(DecoderSpace):
    """:class:`DecoderSpace` as it reads a prompt.

    The context ``sequence`` is the number of its tokens. The results are the scores of the next
    token, and the keys and values of all tokens.
    """

    name = "lm-prefill"
    contexts = {"sequence": (32, 64, 128, 256)}

    def lengths(self, contexts: Mapping[str, Value]) -> tuple[int, int | None]:
        return Axis("sequence", int(contexts["sequence"])), None


class DecodeSpace(DecoderSpace):
    """:class:`DecoderSpace` as it reads one token after others.

    The context ``past`` is the number of tokens in the cache of keys and values. The results are
    the scores of the next token, and the cache with one more token.
    """

    name = "lm-decode"
    contexts = {"past": (128, 256, 512, 1024)}

    def lengths(self, contexts: Mapping[str, Value]) -> tuple[int, int | None]:
        return 1, Axis("past", int(contexts["past"]))
