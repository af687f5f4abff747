"""Latency predictors by name; each is loaded when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from esm_host.errors import UsageError
from esm_protos.nearest import nearest
from esm_protos.text import install

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.predictors.base import Predictor
    from esm_models.space import SearchSpace


@dataclass(frozen=True)
class Entry:
    """A predictor that can be had by name.

    Attributes:
        where: ``"module:Class"`` within this package.
        encoding: that it is used with unless another is asked for; ``"operation-one-hot"`` is
            what the predictor study feeds all that bring none of their own.
        about: a line for help and documentation.
        params: of the constructor, where this name differs from the class's defaults.
    """

    where: str
    encoding: str
    about: str
    params: Mapping[str, Any] = field(default_factory=dict)


# The predictor study has a small MLP, wider, and a large one, thinner and deeper (Laube et al.
# 2022, Section 4); their sizes are in a supplement that we do not have. The large one's were chosen
# on latencies of NAS-Bench-201 on 1080ti_1 and FBNet on 1080ti_32, of which we report no figure;
# the small one follows it.
_STEPS = {"epochs": 30, "min_steps": 800, "batch_size": 32}
_SMALL = {"hidden": 128, "layers": 3, "learning_rate": 0.003, "weight_decay": 1e-3, **_STEPS}
# With PyTorch's initial weights, some of the deep networks fade to a constant.
_LARGE = {
    "hidden": 32,
    "layers": 6,
    "learning_rate": 0.01,
    "weight_decay": 3e-4,
    "gain": 1.0,
    **_STEPS,
}

PREDICTORS: dict[str, Entry] = {
    "auto": Entry(
        "auto:AutoPredictor", "views", "several, cross-validated and weighted; the default"
    ),
    "mlp": Entry("mlp:MLPPredictor", "fcc", "ESM's multilayer perceptron, 3 layers of 64"),
    "mlp-esm": Entry(
        "mlp:MLPPredictor",
        "fcc",
        "the same on plain inputs, at one learning rate: what ESM's paper says, and no more",
        {"standardise": False, "cosine": False},
    ),
    "lookup": Entry(
        "lookup:LookupPredictor", "operation-one-hot", "a latency per operation, added up"
    ),
    "lookup-bias": Entry(
        "lookup:LookupBiasPredictor", "parts", "parts timed one by one, with bias correction"
    ),
    "linear": Entry("linear:LinearPredictor", "operation-one-hot", "least squares"),
    "ridge": Entry(
        "linear:RidgePredictor",
        "operation-one-hot",
        "ridge regression, its penalty by leave-one-out",
    ),
    "bayesian": Entry(
        "linear:BayesianPredictor", "operation-one-hot", "Bayesian linear regression"
    ),
    "svr": Entry("baselines.kernel:SVRPredictor", "operation-one-hot", "support vector regression"),
    "gp": Entry("baselines.kernel:GPPredictor", "operation-one-hot", "exact Gaussian process"),
    "sparse-gp": Entry(
        "baselines.sparse_gp:SparseGPPredictor",
        "operation-one-hot",
        "Gaussian process with inducing points",
    ),
    "forest": Entry("baselines.trees:ForestPredictor", "operation-one-hot", "random forest"),
    "xgboost": Entry(
        "baselines.xgb:XGBoostPredictor", "operation-one-hot", "XGBoost's boosted trees"
    ),
    "lightgbm": Entry(
        "baselines.lgbm:LightGBMPredictor", "operation-one-hot", "LightGBM's boosted trees"
    ),
    "ngboost": Entry(
        "baselines.ngb:NGBoostPredictor",
        "operation-one-hot",
        "NGBoost's boosted trees, with uncertainty",
    ),
    "mlp-small": Entry(
        "mlp:MLPPredictor", "operation-one-hot", "a wide, shallow MLP: 3 layers of 128", _SMALL
    ),
    "mlp-large": Entry(
        "mlp:MLPPredictor", "operation-one-hot", "a thin, deep MLP: 6 layers of 32", _LARGE
    ),
    "bananas": Entry(
        "baselines.bananas:BANANASPredictor", "path", "ensemble of three large MLPs", _LARGE
    ),
    "nao": Entry(
        "baselines.nao:NAOPredictor", "graph", "encoder, latency head and decoder, trained together"
    ),
    "bohamiann": Entry(
        "baselines.bohamiann:BOHAMIANNPredictor", "operation-one-hot", "Bayesian MLP, sampled"
    ),
    "gcn": Entry(
        "baselines.graph_networks:GCNPredictor", "graph", "graph convolutions in both directions"
    ),
    "bonas": Entry(
        "baselines.graph_networks:BONASPredictor", "graph", "graph embedding, Bayesian regression"
    ),
}


def entry(name: str) -> Entry:
    """What is known of a predictor before it is loaded.

    Raises:
        UsageError: there is no such predictor.
    """
    if name not in PREDICTORS:
        hint = nearest(name, PREDICTORS)
        raise UsageError(f"unknown predictor '{name}': {hint}choose {', '.join(PREDICTORS)}")
    return PREDICTORS[name]


def predictor_class(name: str) -> type[Predictor]:
    """The class behind a name; its library is loaded now.

    Raises:
        UsageError: there is no such predictor, or its library is not installed.
    """
    where = f"{__name__}.{entry(name).where}"
    found: type[Predictor] = load_class(where, f"predictor '{name}'", "predictors")
    return found


def load_class(where: str, what: str, extra: str = "host") -> Any:
    """Return a class or a function by where it is; its library is loaded now.

    Args:
        where: ``package.module:name``.
        what: names the class in the error.
        extra: of the install, for libraries other than torch.

    Raises:
        UsageError: its library is not installed.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = "host" if error.name == "torch" else extra
        raise UsageError(f"{what} needs {error.name}: {install(extra)}") from error


def encoding_for(name: str, space: SearchSpace) -> str:
    """The encoding that a predictor is used with; operation-one-hot where that does not suit.

    Raises:
        UsageError: there is no such predictor.
    """
    from esm_host.encoding import ENCODERS

    encoding = entry(name).encoding
    return encoding if ENCODERS[encoding].suits(space) else "operation-one-hot"


def make_predictor(name: str, encoder: Encoder, seed: int = 0, **params: Any) -> Predictor:
    """An unfitted predictor by name, for vectors of an encoder.

    Args:
        seed: of what it draws at random, if anything.
        params: of its constructor, in place of its defaults.

    Raises:
        UsageError: as :func:`predictor_class`, or it cannot learn from this encoding.
    """
    cls = predictor_class(name)
    if cls.needs_graph and not encoder.layout.nodes:
        raise UsageError(
            f"predictor '{name}' learns from graphs, not from '{encoder.name}': take the encoding "
            "graph"
        )
    known = inspect.signature(cls).parameters
    given: dict[str, Any] = {**PREDICTORS[name].params, **params}
    if "seed" in known:
        given.setdefault("seed", seed)
    if "layout" in known:
        given.setdefault("layout", encoder.layout)
    return cls(**given)


__all__ = [
    "PREDICTORS",
    "Entry",
    "encoding_for",
    "entry",
    "load_class",
    "make_predictor",
    "predictor_class",
]
