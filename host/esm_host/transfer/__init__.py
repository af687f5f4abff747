"""Few-shot predictors by name, which transfer latencies of other devices to a new one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esm_host import plugins
from esm_host.errors import UsageError
from esm_protos.nearest import unknown
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.transfer.base import FewShotPredictor


DEFAULT = "gaussian"
ALIASES = {"ours": DEFAULT}
LEAST_SAMPLES = 5
"""Smallest number of samples of the new device."""


@dataclass(frozen=True)
class Method(plugins.Entry):
    """Description of a few-shot predictor that is not yet loaded.

    Attributes:
        sampler: Default sampler of a campaign's first architectures, from :data:`SAMPLERS`.
        per_source: Largest number of random architectures of a source to learn from; None for
            all.
    """

    sampler: str = "random"
    per_source: int | None = None


_NASFLAT_SAMPLES = 800
"""Samples per source in NASFLAT's Table 7 on FBNet; more take minutes of training."""

METHODS: dict[str, Method] = {
    "gaussian": Method(
        "esm_host.transfer.gaussian:SourceGP",
        "Gaussian process on the sources' predictions; the default, also called ours",
        sampler="informative",
    ),
    "nasflat": Method(
        "esm_host.research.transfer.nasflat:NasflatPredictor",
        "graph network with an embedding per device",
        {"supplement": "zcp"},
        sampler="cosine:zcp",
        per_source=_NASFLAT_SAMPLES,
    ),
    "proxy": Method(
        "esm_host.research.transfer.proxy:ProxyPredictor",
        "predictor of the source with the most similar ranking",
    ),
    "adaproxy": Method(
        "esm_host.research.transfer.proxy:AdaProxyPredictor", "proxy, scaled and corrected"
    ),
    "adaproxy-network": Method(
        "esm_host.research.transfer.proxy:AdaProxyPredictor",
        "proxy, with the last layer of a perceptron adapted",
        {"model": "network"},
        per_source=_NASFLAT_SAMPLES,
    ),
    "flops": Method(
        "esm_host.research.transfer.counting:FlopsPredictor", "ranking by FLOPs, without learning"
    ),
    "parameters": Method(
        "esm_host.research.transfer.counting:ParametersPredictor",
        "ranking by parameters, without learning",
    ),
    "layer-wise": Method(
        "esm_host.research.transfer.counting:LayerWisePredictor",
        "sum of one latency per layer, without sources",
    ),
    "scratch": Method(
        "esm_host.research.transfer.scratch:ScratchPredictor",
        "automatic predictor, without sources",
    ),
    "brp-nas": Method(
        "esm_host.research.transfer.scratch:ScratchPredictor",
        "graph convolutions, without sources",
        {"predictor": "gcn"},
    ),
    "help": Method(
        "esm_host.research.transfer.help:HELPPredictor",
        "meta-learned network with latencies of references",
        sampler="shared",
        per_source=_NASFLAT_SAMPLES,
    ),
    "multipredict": Method(
        "esm_host.research.transfer.multipredict:MultiPredictPredictor",
        "one network for all devices, with an embedding per device",
        per_source=_NASFLAT_SAMPLES,
    ),
}

SAMPLERS: dict[str, str] = {
    "informative": "most informative about all others, by the sources' predictions",
    "random": "uniform at random",
    "shared": "random among those that most sources measured, as HELP's references",
    "parameters": "spread over the number of parameters",
    "latency-oracle": "spread over latency, as the sources' models predict it",
    "cosine": "spread over the mean cosine similarity of encodings; cosine:ENCODING",
    "k-means": "centres of clusters of encodings; k-means:ENCODING",
}

ENCODINGS: dict[str, str] = {
    "zcp": "zero-cost proxies, counted from the graph",
    "arch2vec": "Arch2Vec, trained on the space first",
    "cate": "CATE, trained on the space first",
}
"""Encodings of architectures for samplers and NASFLAT; several are joined by ``+``.

They are no family of plug-ins. Each is trained on the whole space, its weights are stored with a
campaign, and its name is part of stored settings. An encoding of your own belongs to a predictor
(:data:`esm_host.encoding.FAMILY`).
"""

CAZ = "cate+arch2vec+zcp"


FAMILY = Family(
    what="method",
    group="esm.transfer_methods",
    base="esm_host.transfer.base:FewShotPredictor",
    builtin={name: each.where for name, each in METHODS.items()},
)


def method_of(name: str) -> Method:
    """Return the description of a method; one that is not built in is loaded.

    Args:
        name: Name in :data:`METHODS` or :data:`ALIASES`, of an installed package (entry points
            ``esm.transfer_methods``), or ``path/to/file.py:Class``.

    Raises:
        UsageError: the method does not exist or cannot be loaded.
    """
    name = ALIASES.get(name, name)
    if name in METHODS:
        return METHODS[name]
    cls = method_class(name)
    return Method(name, plugins.about(cls), sampler=cls.sampler, per_source=cls.per_source)


def method_class(name: str) -> type[FewShotPredictor]:
    """Load the class of a method and its library.

    Raises:
        UsageError: the method does not exist, or its library is not installed.
    """
    found: type[FewShotPredictor] = plugins.plugin_class(FAMILY, ALIASES.get(name, name))
    return found


def make_method(name: str, seed: int = 0, **params: Any) -> FewShotPredictor:
    """Return an untrained few-shot predictor.

    Args:
        name: Name of the method.
        seed: Random seed.
        **params: Arguments of the constructor that replace its defaults.

    Raises:
        UsageError: the method does not exist, its library is not installed, or it has no such
            parameter.
    """
    cls = method_class(name)
    known = inspect.signature(cls).parameters
    for option, value in params.items():
        if option not in known:
            options = [each for each in known if each != "seed"]
            cure = "" if options else "it has none"
            where = f"of method '{name}'"
            raise UsageError(unknown("option", option, options, where=where, choices=cure))
        _check_type(name, option, value, known[option].annotation)
    return plugins.build(cls, name, {**method_of(name).params, **params}, seed=seed)


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return options of a method from texts ``NAME=VALUE``.

    Args:
        texts: Texts; a value is JSON (number, true, false, null) or else a word.

    Raises:
        UsageError: a text has no name or no ``=``.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name.strip() or not sign:
            raise UsageError(f"option '{text}': give NAME=VALUE, such as epochs=20")
        try:
            options[name.strip()] = json.loads(value)
        except ValueError:
            options[name.strip()] = value
    return options


_KINDS: dict[str, tuple[type, ...]] = {
    "None": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def _check_type(name: str, option: str, value: Any, annotation: Any) -> None:
    """Check that a simple value fits the type of its parameter.

    Raises:
        UsageError: the value has another type.
    """
    if annotation is inspect.Parameter.empty:
        return
    # A module without postponed annotations has types instead of names.
    kinds = getattr(annotation, "__name__", str(annotation)).split(" | ")
    fitting = [each for kind in kinds for each in _KINDS.get(kind, ())]
    if type(value) in fitting or not isinstance(value, str | int | float | None):
        return
    words = " or ".join(kind for kind in kinds if kind in _KINDS and kind != "None")
    raise UsageError(
        f"option '{option}' of method '{name}' is {json.dumps(value)}: give {words or 'an object'}"
    )


def sampler_and_encoding(text: str) -> tuple[str, str]:
    """Return a sampler's name and its encoding, ``""`` for a sampler without one.

    Args:
        text: Text such as ``"random"``, ``"cosine"`` or ``"cosine:cate+zcp"``. The default
            encoding is zcp; caz stands for all three.

    Raises:
        UsageError: the sampler or the encoding does not exist.
    """
    name, colon, encoding = text.partition(":")
    if name not in SAMPLERS:
        raise UsageError(unknown("sampler", name, SAMPLERS))
    if name not in ("cosine", "k-means"):
        if colon:
            raise UsageError(f"sampler '{name}' uses no encoding: omit ':{encoding}'")
        return name, ""
    return name, encoding_names(encoding or "zcp")


def encoding_names(text: str) -> str:
    """Return encodings joined by ``+``, with ``caz`` expanded.

    Raises:
        UsageError: an encoding does not exist.
    """
    names = CAZ if text == "caz" else text
    for name in names.split("+"):
        if name not in ENCODINGS:
            choices = f"choose {', '.join(ENCODINGS)}, several joined by +, or caz for all"
            raise UsageError(unknown("encoding", name, ENCODINGS, choices=choices))
    return names


__all__ = [
    "ALIASES",
    "CAZ",
    "DEFAULT",
    "ENCODINGS",
    "FAMILY",
    "LEAST_SAMPLES",
    "METHODS",
    "SAMPLERS",
    "Method",
    "encoding_names",
    "make_method",
    "method_class",
    "method_of",
    "read_options",
    "sampler_and_encoding",
]
