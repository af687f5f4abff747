"""AutoFormer's search space of vision transformers (Chen et al. 2021)."""

from __future__ import annotations

from fractions import Fraction

from esm_models.graph import Network
from esm_models.space import Chosen, Feature, Option, SearchSpace, Unit

PATCH = 16
HEAD = 64


class AutoFormerSpace(SearchSpace):
    """AutoFormer-Tiny: 12 to 14 blocks, each with its own heads and MLP ratio; 1.06e9 networks.

    The network chooses its embedding (192, 216 or 240), every block its number of heads (3 or 4,
    of 64 channels each) and its MLP ratio (3.5 or 4). Patches have 16 x 16 pixels. A class token
    and absolute positions are added to them, and the mean over the patches is classified. The
    relative positions of keys and values are left out. ``width_mult`` scales the embedding and the
    channels of heads.
    """

    name = "autoformer"
    units = (
        Unit(
            depths=(12, 13, 14),
            features=(
                Feature("heads", "h", (3, 4)),
                Feature("mlp_ratio", "r", (Fraction(7, 2), Fraction(4))),
            ),
        ),
    )
    choices = (Feature("embedding", "d", (192, 216, 240)),)
    min_resolution = PATCH

    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        width = self.channels(int(units["embedding"]))
        with net.scope("stem"):
            x = net.conv(net.input, width, kernel=PATCH, stride=PATCH, padding=0, norm=False)
            batch, _, rows, columns = net.shape(x)
            x = net.transpose(net.reshape(x, (batch, width, rows * columns)), (0, 2, 1))
            x = net.concat([net.parameter(1, 1, width), x])  # class token
            x = net.add(x, net.parameter(1, 1 + rows * columns, width))
        for position, block in enumerate(units[0], start=1):
            with net.scope(f"unit1.block{position}"):
                x = self._block(net, x, width, block)
        with net.scope("head"):
            patches = net.slice(net.layer_norm(x), 1, axis=1)
            return net.linear(net.reduce_mean(patches, [1]), 1000)

    def _block(self, net: Network, x: str, width: int, block: Option) -> str:
        heads = int(block["heads"])
        inner = heads * self.channels(HEAD)
        query, key, value = net.split(net.linear(net.layer_norm(x), 3 * inner), 3)
        x = net.add(x, net.linear(net.attention(query, key, value, heads), width))
        hidden = int(width * float(block["mlp_ratio"]))
        y = net.gelu(net.linear(net.layer_norm(x), hidden))
        return net.add(x, net.linear(y, width))
