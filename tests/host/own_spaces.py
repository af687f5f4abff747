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
