"""Few-shot predictors by name, which transfer what is known of one device to another."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esm_host import plugins
from esm_host.errors import UsageError
from esm_protos.nearest import nearest
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.transfer.base import FewShotPredictor


DEFAULT = "gaussian"
ALIASES = {"ours": DEFAULT}
LEAST_SAMPLES = 5
"""Samples of the new device that a campaign's predictor learns from, at least."""


@dataclass(frozen=True)
class Method(plugins.Entry):
    """What is known of a few-shot predictor before it is loaded.

    Attributes:
        sampler: in :data:`SAMPLERS`, that chooses what a campaign measures unless another is asked
            for.
        per_source: architectures of a source that a campaign learns from at most, drawn at random;
            None takes all.
    """

    sampler: str = "random"
    per_source: int | None = None


_NASFLAT_SAMPLES = 800
"""Per source, of NASFLAT's Table 7 on FBNet; a network takes minutes to learn more."""

METHODS: dict[str, Method] = {
    "gaussian": Method(
        "esm_host.transfer.gaussian:SourceGP",
        "the default, also called ours: a Gaussian process that knows what others would take",
        sampler="informative",
    ),
    "nasflat": Method(
        "esm_host.research.transfer.nasflat:NasflatPredictor",
        "a graph network with an embedding per device",
        {"supplement": "zcp"},
        sampler="cosine:zcp",
        per_source=_NASFLAT_SAMPLES,
    ),
    "proxy": Method(
        "esm_host.research.transfer.proxy:ProxyPredictor",
        "the predictor of the source that ranks most alike",
    ),
    "adaproxy": Method(
        "esm_host.research.transfer.proxy:AdaProxyPredictor", "the same, scaled and corrected"
    ),
    "adaproxy-network": Method(
        "esm_host.research.transfer.proxy:AdaProxyPredictor",
        "the same, a perceptron's last layer",
        {"model": "network"},
        per_source=_NASFLAT_SAMPLES,
    ),
    "flops": Method(
        "esm_host.research.transfer.counting:FlopsPredictor", "orders by FLOPs; learns nothing"
    ),
    "parameters": Method(
        "esm_host.research.transfer.counting:ParametersPredictor",
        "orders by parameters; learns nothing",
    ),
    "layer-wise": Method(
        "esm_host.research.transfer.counting:LayerWisePredictor",
        "a latency per layer, added up, without sources",
    ),
    "scratch": Method(
        "esm_host.research.transfer.scratch:ScratchPredictor",
        "the automatic predictor, without sources",
    ),
    "brp-nas": Method(
        "esm_host.research.transfer.scratch:ScratchPredictor",
        "graph convolutions, without sources",
        {"predictor": "gcn"},
    ),
    "help": Method(
        "esm_host.research.transfer.help:HELPPredictor",
        "meta-learned, given how references run",
        sampler="shared",
        per_source=_NASFLAT_SAMPLES,
    ),
    "multipredict": Method(
        "esm_host.research.transfer.multipredict:MultiPredictPredictor",
        "one network with an embedding per device",
        per_source=_NASFLAT_SAMPLES,
    ),
}

SAMPLERS: dict[str, str] = {
    "informative": "those that tell most of all others, by what the sources expect",
    "random": "any",
    "shared": "at random of those that most sources have measured, as HELP's references",
    "parameters": "spread over the numbers of parameters",
    "latency-oracle": "spread over latencies, which the sources' models stand in for",
    "cosine": "spread over the mean cosine similarity of encodings; cosine:ENCODING",
    "k-means": "the middles of clusters of encodings; k-means:ENCODING",
}

ENCODINGS: dict[str, str] = {
    "zcp": "zero-cost proxies that are counted from the graph",
    "arch2vec": "Arch2Vec, learnt on the space first",
    "cate": "CATE, learnt on the space first",
}
"""Encodings of architectures for samplers and NASFLAT; several are joined by ``+``."""

CAZ = "cate+arch2vec+zcp"


FAMILY = Family(
    what="method",
    group="esm.transfer_methods",
    base="esm_host.transfer.base:FewShotPredictor",
    builtin={name: each.where for name, each in METHODS.items()},
)


def method_of(name: str) -> Method:
    """Return what is known of a method; one that is not built in is loaded for it.

    Args:
        name: in :data:`METHODS` or :data:`ALIASES`, of an installed package (entry points
            ``esm.transfer_methods``), or ``path/to/file.py:Class``.

    Raises:
        UsageError: there is no such method, or it cannot be loaded.
    """
    name = ALIASES.get(name, name)
    if name in METHODS:
        return METHODS[name]
    cls = method_class(name)
    return Method(name, plugins.about(cls), sampler=cls.sampler, per_source=cls.per_source)


def method_class(name: str) -> type[FewShotPredictor]:
    """Return the class behind a name; its library is loaded now.

    Raises:
        UsageError: there is no such method, or its library is not installed.
    """
    found: type[FewShotPredictor] = plugins.plugin_class(FAMILY, ALIASES.get(name, name))
    return found


def make_method(name: str, seed: int = 0, **params: Any) -> FewShotPredictor:
    """Return a few-shot predictor by name, which has learnt nothing yet.

    Args:
        seed: of what it draws at random, if anything.
        params: of its constructor, in place of its defaults.

    Raises:
        UsageError: there is no such method, its library is not installed, or it has no such
            parameter.
    """
    cls = method_class(name)
    known = inspect.signature(cls).parameters
    for option, value in params.items():
        if option not in known:
            options = ", ".join(each for each in known if each != "seed")
            raise UsageError(
                f"method '{name}' has no option '{option}': {nearest(option, known)}"
                + (f"choose from {options}" if options else "it has none")
            )
        _check_type(name, option, value, known[option].annotation)
    return plugins.build(cls, name, {**method_of(name).params, **params}, seed=seed)


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return options of a method by name, of texts ``NAME=VALUE``.

    Args:
        texts: a value is a number, true, false or null, as JSON has them, or else a word.

    Raises:
        UsageError: one of them has no name or no ``=``.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name.strip() or not sign:
            raise UsageError(f"option '{text}': give NAME=VALUE, as epochs=20")
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
    """Raise UsageError where a value is a word or a number and its parameter is something else."""
    if annotation is inspect.Parameter.empty:
        return
    # A module without postponed annotations has types where others have their names.
    kinds = getattr(annotation, "__name__", str(annotation)).split(" | ")
    fitting = [each for kind in kinds for each in _KINDS.get(kind, ())]
    if type(value) in fitting or not isinstance(value, str | int | float | None):
        return
    words = " or ".join(kind for kind in kinds if kind in _KINDS and kind != "None")
    raise UsageError(
        f"option '{option}' of method '{name}' is {json.dumps(value)}: give {words or 'an object'}"
    )


def sampler_and_encoding(text: str) -> tuple[str, str]:
    """Return a sampler's name and the encoding that it reads, ``""`` of one that reads none.

    Args:
        text: ``"random"``, ``"cosine"`` or ``"cosine:cate+zcp"``; zcp is the default, and caz
            short for all three.

    Raises:
        UsageError: there is no such sampler or encoding.
    """
    name, colon, encoding = text.partition(":")
    if name not in SAMPLERS:
        hint = nearest(name, SAMPLERS)
        raise UsageError(f"unknown sampler '{name}': {hint}choose {', '.join(SAMPLERS)}")
    if name not in ("cosine", "k-means"):
        if colon:
            raise UsageError(f"sampler '{name}' reads no encoding: leave ':{encoding}' out")
        return name, ""
    return name, encoding_names(encoding or "zcp")


def encoding_names(text: str) -> str:
    """Return encodings joined by ``+``, ``caz`` written out.

    Raises:
        UsageError: there is no such encoding.
    """
    names = CAZ if text == "caz" else text
    for name in names.split("+"):
        if name not in ENCODINGS:
            raise UsageError(
                f"unknown encoding '{name}': {nearest(name, ENCODINGS)}choose "
                f"{', '.join(ENCODINGS)}, several joined by +, or caz for all"
            )
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
