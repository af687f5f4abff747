"""Search spaces in a file, as users write them."""

from esm_models.space import Feature, SearchSpace


class Tiny(SearchSpace):
    """27 architectures: three units of one block."""

    name = "tiny"
    depths = ((1,),) * 3
    features = (Feature("kernel", "k", (1, 3, 5)),)

    def network(self, net, units):
        x = net.input
        for unit in units:
            x = net.relu(net.conv(x, 8, kernel=unit[0]["kernel"], stride=2))
        return net.linear(net.flatten(x), 10)


class Unknown(SearchSpace):
    """An operator that no runtime has."""

    name = "unknown"
    depths = ((1, 2, 3, 4, 5),)
    features = (Feature("kernel", "k", (3, 5)),)

    def network(self, net, units):
        return net._add("NoSuchOperator", [net.input], net.shape(net.input))


class Broken(Tiny):
    """A mistake in the network."""

    def network(self, net, units):
        return net.relu(no_such_name)  # noqa: F821


class Gaps(Tiny):
    """Depths 2, 41 and 80 only: of four equal bins one is empty."""

    depths = ((1, 40), (1, 40))


class Scoped(SearchSpace):
    """Two units of 1-2 blocks, ten parts: a first and another block of each option, and two."""

    name = "scoped"
    depths = ((1, 2),) * 2
    features = (Feature("kernel", "k", (1, 3)),)

    def network(self, net, units):
        with net.scope("stem"):
            x = net.relu(net.conv(net.input, self.channels(8), kernel=3, stride=2))
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    stride = 2 if position == 1 else 1
                    channels = self.channels(16 * number)
                    x = net.relu(net.conv(x, channels, kernel=block["kernel"], stride=stride))
        with net.scope("head"):
            return net.linear(net.flatten(net.global_average_pool(x)), 10)


class TwoBefore(SearchSpace):
    """Blocks that add what the block before the one before gave."""

    name = "two-before"
    depths = ((1, 2, 3),) * 2
    features = (Feature("width", "w", (8, 16)),)

    def network(self, net, units):
        old = x = net.input
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    old, x = x, net.conv(net.concat([old, x]), block["width"])
        return net.linear(net.flatten(net.global_average_pool(x)), 10)


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
