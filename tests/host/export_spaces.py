"""Search spaces whose networks use all that there is, and what has no torch form."""

from esm_models.graph import Network
from esm_models.space import Feature, SearchSpace


class Everything(SearchSpace):
    """Every operator, even kernels, odd sides, and scopes of any name and shape."""

    name = "every-thing"
    depths = ((1, 2),) * 2
    features = (Feature("kernel", "k", (2, 3, 4)),)
    default_resolution = 97

    def network(self, net: Network, units) -> str:
        with net.scope("train"):  # a method of torch modules
            x = net.hard_swish(net.conv(net.input, 16, kernel=4, stride=2))
            x = net.max_pool(x, kernel=2, stride=1)
        for number, unit in enumerate(units, start=1):
            for position, block in enumerate(unit, start=1):
                with net.scope(f"unit{number}.block{position}"):
                    x = self._block(net, x, int(block["kernel"]))
        with net.scope("1st half-way"):
            a, b = net.conv(x, 8), net.relu(net.conv(x, 8, norm=False))
        with net.scope("lambda"):  # a word of Python's
            x = net.concat([a, net.conv(b, 8), b, net.zeros_like(a)])
        with net.scope("train"):  # again
            x = net.add(net.conv(x, 16), net.same_average_pool(net.conv(x, 16), kernel=2))
        x = net.average_pool(net.max_pool(x))
        return net.linear(net.flatten(net.relu(net.batch_norm(net.conv(x, 8)))), 10)

    def _block(self, net: Network, x: str, kernel: int) -> str:
        y = net.shuffle(net.relu(net.conv(x, 16, groups=4)), 4)
        y = net.conv(y, 16, kernel=kernel, groups=16)
        gate = net.conv(net.global_average_pool(y), 16, norm=False)
        y = net.multiply(y, net.hard_sigmoid(gate))
        y = net.same_average_pool(y, kernel=kernel)
        return net.same_average_pool(net.add(x, y), kernel=2, stride=2)


class Foreign(SearchSpace):
    """What its option names has no torch form."""

    name = "foreign"
    depths = ((1,),)
    features = (Feature("operator", "", ("Softsign", "dilated", "cubic")),)
    default_resolution = 32

    def network(self, net: Network, units) -> str:
        x, ((option,),) = net.conv(net.input, 8, kernel=3), units
        with net.scope("unit1.block1"):
            if option["operator"] == "Softsign":
                x = net._add("Softsign", [x], net.shape(x))
            elif option["operator"] == "dilated":
                weight = net._parameter("dilated", (8, 8, 3, 3))
                pads = {"pads": [2] * 4, "dilations": [2, 2]}
                x = net._add("Conv", [x, weight], net.shape(x), **pads)
            else:
                x = net._add("Resize", [x, "", net.constant([1.0] * 4)], net.shape(x), mode="cubic")
        return net.linear(net.flatten(net.global_average_pool(x)), 10)
