"""A search space of one's own: ``esm-host profile --space docs/own_space.py:PlainNet``."""

from esm_models.space import Feature, SearchSpace


class PlainNet(SearchSpace):
    """Three units of 1-3 plain convolutions, each with its own kernel and width."""

    name = "plainnet"
    depths = ((1, 2, 3),) * 3
    features = (Feature("kernel", "k", (1, 3, 5)), Feature("width", "w", (16, 32, 64)))

    def network(self, net, units):
        x = net.input
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    stride = 2 if position == 1 else 1
                    width = self.channels(block["width"])
                    x = net.relu(net.conv(x, width, kernel=block["kernel"], stride=stride))
        return net.linear(net.flatten(net.global_average_pool(x)), 10)
