"""Once-for-all's MobileNetV3 search space (Cai et al. 2020)."""

from __future__ import annotations

from esm_models.space import Feature
from esm_models.spaces.mobilenetv3 import MobileNetV3Space, Stage


class OFASpace(MobileNetV3Space):
    """Once-for-all's five units of 2-4 inverted-residual blocks.

    The kernel is 3, 5 or 7 and the expansion 3, 4 or 6. The stages are the five of
    MobileNetV3-Large, with 24, 40, 80, 112 and 160 channels, between its stem and head.
    ``width_mult`` 1.2 is Once-for-all's wider network. Each architecture has its own resolution,
    128 to 224 in steps of 4, unless the space has a fixed one.
    """

    name = "ofa"
    depths = ((2, 3, 4),) * 5
    features = (Feature("kernel", "k", (3, 5, 7)), Feature("expansion", "e", (3, 4, 6)))
    resolutions = tuple(range(128, 225, 4))
    stages = (
        Stage(24, squeeze_excite=False, hard_swish=False),
        Stage(40, squeeze_excite=True, hard_swish=False),
        Stage(80, squeeze_excite=False, hard_swish=True),
        Stage(112, squeeze_excite=True, hard_swish=True, stride=1),
        Stage(160, squeeze_excite=True, hard_swish=True),
    )
    max_expansion = 1  # the feature's value is the expansion ratio
