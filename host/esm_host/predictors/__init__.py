"""Latency predictors by name, loaded on first use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esm_host import plugins
from esm_host.encoding import encoder_class
from esm_host.errors import UsageError
from esm_protos.plugins import Family

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.predictors.base import Predictor
    from esm_models.space import SearchSpace

USUAL_ENCODING = "operation-one-hot"
"""Encoding in the predictor study of all predictors without an encoding of their own."""


@dataclass(frozen=True)
class Entry(plugins.Entry):
    """Description of a predictor that is not yet loaded.

    Attributes:
        encoding: Default encoding of the predictor.
    """

    encoding: str = USUAL_ENCODING


# The predictor study has a small, wide MLP and a large, deep one (Laube et al. 2022, Section 4).
# Their sizes are in a supplement that we do not have. The large one was chosen on latencies of
# NAS-Bench-201 on 1080ti_1 and FBNet on 1080ti_32, which no reported figure uses. The small one
# follows it.
_STEPS = {"epochs": 30, "min_steps": 800, "batch_size": 32}
_SMALL = {"hidden": 128, "layers": 3, "learning_rate": 0.003, "weight_decay": 1e-3, **_STEPS}
# With PyTorch's initial weights, some of the deep networks collapse to a constant.
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
        "esm_host.predictors.auto:AutoPredictor",
        "weighted combination of several predictors, by cross-validation; the default",
        encoding="views",
    ),
    "mlp": Entry(
        "esm_host.predictors.mlp:MLPPredictor",
        "ESM's multilayer perceptron, 3 layers of 64",
        encoding="fcc",
    ),
    "mlp-esm": Entry(
        "esm_host.predictors.mlp:MLPPredictor",
        "the same as in ESM's paper: inputs as they are, constant learning rate",
        {"standardise": False, "cosine": False},
        encoding="fcc",
    ),
    "lookup": Entry(
        "esm_host.predictors.lookup:LookupPredictor", "sum of one latency per operation"
    ),
    "lookup-bias": Entry(
        "esm_host.predictors.lookup:LookupBiasPredictor",
        "sum of parts that were timed separately, with bias correction",
        encoding="parts",
    ),
    "linear": Entry("esm_host.predictors.linear:LinearPredictor", "least squares"),
    "ridge": Entry(
        "esm_host.predictors.linear:RidgePredictor",
        "ridge regression, penalty by leave-one-out",
    ),
    "bayesian": Entry("esm_host.predictors.linear:BayesianPredictor", "Bayesian linear regression"),
    "svr": Entry("esm_host.predictors.baselines.kernel:SVRPredictor", "support vector regression"),
    "gp": Entry("esm_host.predictors.baselines.kernel:GPPredictor", "exact Gaussian process"),
    "sparse-gp": Entry(
        "esm_host.predictors.baselines.sparse_gp:SparseGPPredictor",
        "Gaussian process with inducing points",
    ),
    "forest": Entry("esm_host.predictors.baselines.trees:ForestPredictor", "random forest"),
    "xgboost": Entry(
        "esm_host.predictors.baselines.xgb:XGBoostPredictor", "XGBoost's boosted trees"
    ),
    "lightgbm": Entry(
        "esm_host.predictors.baselines.lgbm:LightGBMPredictor", "LightGBM's boosted trees"
    ),
    "ngboost": Entry(
        "esm_host.predictors.baselines.ngb:NGBoostPredictor",
        "NGBoost's boosted trees, with uncertainty",
    ),
    "mlp-small": Entry(
        "esm_host.predictors.mlp:MLPPredictor", "wide, shallow MLP: 3 layers of 128", _SMALL
    ),
    "mlp-large": Entry(
        "esm_host.predictors.mlp:MLPPredictor", "narrow, deep MLP: 6 layers of 32", _LARGE
    ),
    "bananas": Entry(
        "esm_host.predictors.baselines.bananas:BANANASPredictor",
        "ensemble of three large MLPs",
        _LARGE,
        encoding="path",
    ),
    "nao": Entry(
        "esm_host.predictors.baselines.nao:NAOPredictor",
        "encoder, latency head and decoder, trained together",
        encoding="graph",
    ),
    "bohamiann": Entry(
        "esm_host.predictors.baselines.bohamiann:BOHAMIANNPredictor", "Bayesian MLP, sampled"
    ),
    "gcn": Entry(
        "esm_host.predictors.baselines.graph_networks:GCNPredictor",
        "graph convolutions in both directions",
        encoding="graph",
    ),
    "bonas": Entry(
        "esm_host.predictors.baselines.graph_networks:BONASPredictor",
        "graph embedding, Bayesian regression",
        encoding="graph",
    ),
}
"""Built-in predictors by name."""

FAMILY = Family(
    what="predictor",
    group="esm.predictors",
    base="esm_host.predictors.base:Predictor",
    builtin={name: each.where for name, each in PREDICTORS.items()},
)


def entry(name: str) -> Entry:
    """Return the description of a predictor; one that is not built in is loaded.

    Args:
        name: Name in :data:`PREDICTORS`, of an installed package (entry points
            ``esm.predictors``), or ``path/to/file.py:Class``.

    Raises:
        UsageError: the predictor does not exist or cannot be loaded.
    """
    if name in PREDICTORS:
        return PREDICTORS[name]
    cls = predictor_class(name)
    return Entry(name, plugins.about(cls), encoding=cls.encoding)


def predictor_class(name: str) -> type[Predictor]:
    """Load the class of a predictor and its library.

    Raises:
        UsageError: the predictor does not exist, or its library is not installed.
    """
    found: type[Predictor] = plugins.plugin_class(FAMILY, name, "predictors")
    return found


def encoding_for(name: str, space: SearchSpace) -> str:
    """Return a predictor's default encoding, or the usual one if that does not suit the space.

    Raises:
        UsageError: the predictor does not exist.
    """
    encoding = entry(name).encoding
    cls = encoder_class(encoding)
    with plugins.own_failures(cls):
        return encoding if cls.suits(space) else USUAL_ENCODING


def make_predictor(name: str, encoder: Encoder, seed: int = 0, **params: Any) -> Predictor:
    """Return an unfitted predictor for the vectors of an encoder.

    Args:
        name: Name of the predictor.
        encoder: Encoder of its inputs.
        seed: Random seed.
        **params: Arguments of the constructor that replace its defaults.

    Raises:
        UsageError: the predictor does not exist, its library is not installed, or it cannot use
            this encoding.
    """
    cls = predictor_class(name)
    with plugins.own_failures(encoder):
        layout = encoder.layout
    if cls.needs_graph and not layout.nodes:
        raise UsageError(
            f"predictor '{name}' needs graphs, not '{encoder.name}': choose the encoding graph"
        )
    given = {**entry(name).params, **params}
    return plugins.build(cls, name, given, seed=seed, layout=layout)


__all__ = [
    "FAMILY",
    "PREDICTORS",
    "USUAL_ENCODING",
    "Entry",
    "encoding_for",
    "entry",
    "make_predictor",
    "predictor_class",
]
