"""FBNet search space (Wu et al. 2019): 22 layers with nine kinds of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace

BLOCKS = (
    ("skip", 0, 0, 0),
    ("k3_e1_g2", 3, 1, 2),
    ("k3_e1", 3, 1, 1),
    ("k5_e1_g2", 5, 1, 2),
    ("k5_e1", 5, 1, 1),
    ("k3_e3", 3, 3, 1),
    ("k5_e3", 5, 3, 1),
    ("k3_e6", 3, 6, 1),
    ("k5_e6", 5, 6, 1),
)
"""Name, kernel size, expansion ratio and groups of the 1x1 convolutions; zeros for ``skip``."""

IMAGENET_PIXELS = 128


class FBNetSpace(SearchSpace):
    """FBNet with seven stages of 1, 4, 4, 4, 4, 4 and 1 layers; 9.85e20 architectures.

    The resolution selects one of the published networks. From 128 pixels on it is the one for
    ImageNet: stem and four stages halve the image, with 1,984 channels before the classifier of
    1,000 classes. Below 128 pixels (default 32) it is the one for CIFAR-100, which HW-NAS-Bench
    measured: three stages halve the image, with 1,504 channels and 100 classes.

    A block is a 1x1 convolution to ``expansion`` times the channels, a depthwise convolution, and
    a 1x1 convolution without activation. If the shapes agree, the input is added to the result.
    With two groups, the channels are shuffled after the first 1x1 convolution. ``skip`` is empty
    if the shapes agree, else a 1x1 convolution with the stage's stride.
    """

    name = "fbnet"
    depths = ((1,), (4,), (4,), (4,), (4,), (4,), (1,))
    features = (
        Feature("kernel", "k", (0, 3, 5)),
        Feature("expansion", "e", (0, 1, 3, 6)),
        Feature("groups", "g", (0, 1, 2)),
    )
    default_resolution = 32
    widths = (16, 24, 32, 64, 112, 184, 352)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        names = [feature.name for feature in self.features]
        return tuple(
            Option(label, dict(zip(names, values, strict=True))) for label, *values in BLOCKS
        )

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        imagenet = self.resolution >= IMAGENET_PIXELS
        strides = (1, 2, 2, 2, 1, 2, 1) if imagenet else (1, 1, 2, 2, 1, 2, 1)
        with net.scope("stem"):
            x = net.conv(net.input, self.channels(16), kernel=3, stride=2 if imagenet else 1)
            x = net.relu(x)
        for number, (unit, width, stride) in enumerate(
            zip(units, self.widths, strides, strict=True), start=1
        ):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._block(net, x, block, width, stride if position == 1 else 1)
        with net.scope("head"):
            x = net.relu(net.conv(x, self.channels(1984 if imagenet else 1504)))
            x = net.flatten(net.global_average_pool(x))
            return net.linear(x, 1000 if imagenet else 100)

    def _block(self, net: Network, x: str, block: Option, width: int, stride: int) -> str:
        in_channels, out = net.shape(x)[1], self.channels(width)
        same_shape = stride == 1 and in_channels == out
        if block.label == "skip":
            return x if same_shape else net.relu(net.conv(x, out, stride=stride))
        middle, groups = in_channels * int(block["expansion"]), int(block["groups"])
        y = net.relu(net.conv(x, middle, groups=groups))
        if groups > 1:
            y = net.shuffle(y, groups)
        y = net.conv(y, middle, kernel=int(block["kernel"]), stride=stride, groups=middle)
        y = net.conv(net.relu(y), out, groups=groups)
        return net.add(x, y) if same_shape else y
