"""What is known of one device, put to use on another: few-shot predictors by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from esm_host.errors import UsageError
from esm_protos.nearest import nearest

if TYPE_CHECKING:
    from esm_host.transfer.base import FewShotPredictor


@dataclass(frozen=True)
class Method:
    """A few-shot predictor that can be had by name; its libraries are loaded when it is.

    Attributes:
        where: ``"module:Class"`` within ``methods``.
        about: a line for help and documentation.
        params: of the constructor, where this name differs from the class's defaults.
    """

    where: str
    about: str
    params: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "gaussian": Method(
        "gaussian:SourceGP", "the default: a Gaussian process that knows what others would take"
    ),
    "nasflat": Method("nasflat:NasflatPredictor", "a graph network with an embedding per device"),
    "proxy": Method("proxy:ProxyPredictor", "the predictor of the source that ranks most alike"),
    "adaproxy": Method("proxy:AdaProxyPredictor", "the same, scaled and corrected"),
    "adaproxy-network": Method(
        "proxy:AdaProxyPredictor", "the same, a perceptron's last layer", {"model": "network"}
    ),
    "flops": Method("counting:FlopsPredictor", "orders by FLOPs; learns nothing"),
    "parameters": Method("counting:ParametersPredictor", "orders by parameters; learns nothing"),
    "layer-wise": Method(
        "counting:LayerWisePredictor", "a latency per layer, added up, without sources"
    ),
    "scratch": Method("scratch:ScratchPredictor", "the automatic predictor, without sources"),
    "brp-nas": Method(
        "scratch:ScratchPredictor", "graph convolutions, without sources", {"predictor": "gcn"}
    ),
    "help": Method("help:HELPPredictor", "meta-learned, given how references run"),
    "multipredict": Method(
        "multipredict:MultiPredictPredictor", "one network with an embedding per device"
    ),
}


def method_class(name: str) -> type[FewShotPredictor]:
    """The class behind a name.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        hint = nearest(name, METHODS)
        raise UsageError(f"unknown method '{name}': {hint}choose {', '.join(METHODS)}")
    module, _, cls = METHODS[name].where.partition(":")
    found: type[FewShotPredictor] = getattr(import_module(f"{__name__}.methods.{module}"), cls)
    return found


def make_method(name: str, seed: int = 0, **params: Any) -> FewShotPredictor:
    """A few-shot predictor by name, which has learnt nothing yet.

    Args:
        seed: of what it draws at random, if anything.
        params: of its constructor, in place of its defaults.

    Raises:
        UsageError: there is no such method.
    """
    cls = method_class(name)
    given = {**METHODS[name].params, **params}
    if "seed" in inspect.signature(cls).parameters:
        given.setdefault("seed", seed)
    return cls(**given)


__all__ = ["METHODS", "Method", "make_method", "method_class"]
