"""Search spaces of transformers, as users write them."""

from esm_models.graph import Axis
from esm_models.space import Feature, SearchSpace


class ViT(SearchSpace):
    """Vision transformer whose first block sets the width of all (Chen et al. 2021)."""

    name = "vit"
    depths = ((1,), tuple(range(6, 13)))
    features = (
        Feature("width", "w", (96, 128, 192, 256)),
        Feature("heads", "h", (2, 4, 8)),
        Feature("ratio", "r", (2, 3, 4)),
    )

    def network(self, net, units):
        (first,), blocks = units
        width = self.channels(first["width"])
        with net.scope("unit1.block1"):
            x = net.conv(net.input, width, kernel=16, stride=16, padding=0, norm=False)
            batch, _, rows, columns = net.shape(x)
            x = net.transpose(net.reshape(x, (batch, width, rows * columns)), (0, 2, 1))
            x = net.concat([net.parameter(1, 1, width), x])
            x = net.add(x, net.parameter(1, 1 + rows * columns, width))
        for number, block in enumerate(blocks, start=1):
            with net.scope(f"unit2.block{number}"):
                parts = net.split(net.linear(net.layer_norm(x), 3 * width), 3)
                x = net.add(x, net.linear(net.attention(*parts, heads=block["heads"]), width))
                inner = net.gelu(net.linear(net.layer_norm(x), block["ratio"] * width))
                x = net.add(x, net.linear(inner, width))
        with net.scope("head"):
            x = net.slice(net.layer_norm(x), 0, 1, axis=1)
            return net.linear(net.flatten(x), 10)


class WidthPerBlock(SearchSpace):
    """Transformer whose blocks have widths of their own, projected where they differ."""

    name = "width-per-block"
    depths = ((3, 6), (3, 6))
    features = ViT.features

    def network(self, net, units):
        x = net.add_input("x", (self.batch, 17, 128))
        for unit, blocks in enumerate(units, start=1):
            for number, block in enumerate(blocks, start=1):
                with net.scope(f"unit{unit}.block{number}"):
                    width = self.channels(block["width"])
                    if net.shape(x)[-1] != width:
                        x = net.linear(x, width)
                    parts = net.split(net.linear(net.layer_norm(x), 3 * width), 3)
                    x = net.add(x, net.linear(net.attention(*parts, heads=block["heads"]), width))
                    inner = net.gelu(net.linear(net.layer_norm(x), block["ratio"] * width))
                    x = net.add(x, net.linear(inner, width))
        with net.scope("head"):
            return net.linear(net.reduce_mean(net.layer_norm(x), [1]), 10)


class Decoder(SearchSpace):
    """Language model that reads some tokens after those in its cache of keys and values."""

    name = "decoder"
    depths = ((1, 2, 3),)
    features = (Feature("kv_heads", "g", (1, 2, 4)), Feature("ratio", "r", (2, 4)))
    default_resolution, min_resolution = 16, 1  # the length of the sequence
    width, heads, tokens, cached = 32, 4, 50, 6

    def network(self, net, units):
        queries = Axis("sequence", self.resolution)
        past, size = Axis("past", self.cached), self.width // self.heads
        tokens = net.add_input("tokens", (self.batch, queries), "int64")
        positions = net.add_input("positions", (self.batch, queries), "int64")
        with net.scope("stem"):
            table = net.parameter(self.tokens, self.width)
            x = net.gather(table, tokens)
            tables = net.rotary_tables(positions, size)
        for number, block in enumerate(units[0], start=1):
            kv = block["kv_heads"]
            shape = (self.batch, past, kv * size)
            caches = [net.add_input(f"past.{number}.{part}", shape) for part in ("key", "value")]
            with net.scope(f"unit1.block{number}"):
                y = net.rms_norm(x)
                q, k, v = (net.linear(y, n * size, bias=False) for n in (self.heads, kv, kv))
                q, k = net.rotary(q, self.heads, tables), net.rotary(k, kv, tables)
                k, v = (net.concat(pair) for pair in zip(caches, (k, v), strict=True))
                net.add_output(f"present.{number}.key", k)
                net.add_output(f"present.{number}.value", v)
                y = net.attention(q, k, v, self.heads, kv, causal=True)
                x = net.add(x, net.linear(y, self.width, bias=False))
                y = net.rms_norm(x)
                gate, y = (net.linear(y, block["ratio"] * self.width, bias=False) for _ in "ab")
                y = net.multiply(net.silu(gate), y)
                x = net.add(x, net.linear(y, self.width, bias=False))
        with net.scope("head"):
            return net.matmul(net.rms_norm(x), net.transpose(table, (1, 0)))
