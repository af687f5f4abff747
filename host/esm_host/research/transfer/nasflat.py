"""NASFLAT as a few-shot predictor."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from esm_host.encoding.graphs import GraphEncoder
from esm_host.errors import UsageError
from esm_host.predictors.networks import GraphColumns, one_thread
from esm_host.research.encodings.by_name import (
    check_encodings,
    supplement_of,
    supplement_weights,
)
from esm_host.research.encodings.zero_cost import Supplement
from esm_host.research.transfer.nasflat_network import (
    LAYERS,
    Architectures,
    NasflatNetwork,
    draw_pairs,
    pairwise_hinge,
)
from esm_host.research.transfer.weights import load_weights, weights
from esm_host.transfer import encoding_names
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import unknown

_ROWS = 256  # rows per step, which fit the processor's cache
_LEAST_RATE = 1e-6


class NasflatPredictor(FewShotPredictor):
    """Network pretrained on all sources and fine-tuned on the new device.

    Akhauri and Abdelfattah 2024, "On Latency Predictors for Neural Architecture Search". The
    network is :class:`NasflatNetwork`. Its loss compares pairs of one batch, which holds
    architectures of any sources. Latencies are scaled to 0 to 1 per device to make them comparable.
    The new device's embedding begins as that of the source whose latencies correlate most with the
    samples (section 5.2). Then all weights are fine-tuned (3.4).

    Hyperparameters are those of Table 20. Others are those of the authors' repository: AdamW; a
    learning rate on a cosine schedule by epoch; batches of 128 in pretraining and in fine-tuning
    (not the table's 16); a chain of blocks without edges. Differences:

    - A source need not have measured the samples: they are compared with the network's predictions
      for each source.
    - A batch's architectures are read once, not once per pair. So dropout is the same in all pairs
      of a sample.
    - Graphs are those of :class:`GraphEncoder`. (In the authors' FBNet, input and output replace
      the first and last block.)
    - Supplements are standardised by the sources' architectures by default.

    The supplement matters most. With zero-cost proxies instead of Arch2Vec, Spearman's correlation
    rose from 0.67 to 0.86 from five GPUs of FBNet to silver_4114, silver_4210r, gold_6240 and
    pixel3. From pixel3 and titanx_1 to gold_6240, silver_4114, titanx_64 and 1080ti_64 it rose from
    0.57 to 0.85 (20 samples, one seed). In the authors' repository, too, the results of Table 7 for
    FBNet are those of zero-cost proxies, despite appendix A.2.

    Pretraining takes about a millisecond per sample and epoch on one core for the 24 nodes of
    FBNet, half of that without edges.

    Args:
        supplement: Input of the head, such as zero-cost proxies or learned encodings. Names of
            :data:`esm_host.transfer.ENCODINGS` joined by ``+``, ``caz`` for all, ``""`` for none.
        standardise: Whether to standardise the supplement. Proxies from 0 to 1, as the authors have
            them, weigh less than the graph, that is the number of blocks of each option. Spearman's
            correlation is then 0.66 instead of 0.90 from silver_4114, silver_4210r, gold_6240 and
            pixel3 to four GPUs, and 0.83 instead of 0.86 from pixel3 and titanx_1. Only a GPU at
            batch 1 gains (titanx_1 0.97 instead of 0.95).
        units: Whether a node's embedding also depends on its unit (stage). In the paper it does
            not, so in a long chain only the supplement has the place of a block. On FBNet, from
            five GPUs to silver_4114, silver_4210r, gold_6240 and pixel3, units rank the sources far
            better without a supplement. For new devices they make little difference.
        edges: Whether nodes have edges to those before them. Otherwise each has an edge to itself
            only, and the network reads the number of blocks of each option. None for the authors'
            choice: in cells, not in chains. With zero-cost proxies, on the devices above, new
            devices are ranked as well with edges as without.
        operation_wise: Whether the device's embedding joins that of every operation (section 5.1,
            "OPHW" in Table 2); otherwise it joins the head.
        initialise: Whether the new device's embedding begins as that of the nearest source (section
            5.2, "INIT" in Table 2); otherwise it begins at random.
        layers: ``"dgf"``, ``"gat"`` or ``"ensemble"`` of both (Table 5).
        epochs: Number of epochs of pretraining.
        batch_size: Samples per step of pretraining.
        learning_rate: Learning rate of pretraining.
        weight_decay: Weight decay of both.
        transfer_epochs: Number of epochs of fine-tuning. None for the paper's: 40 in cells
            (NAS-Bench-201), 30 in chains of blocks (FBNet).
        transfer_learning_rate: Learning rate of fine-tuning. None for the paper's: 0.003 in cells,
            0.001 in chains.
        transfer_batch_size: Samples per step of fine-tuning.
        pairs: Largest number of pairs per batch, as a multiple of its samples.
        margin: Desired difference of the scores of a pair.
        seed: Random seed.
    """

    least_samples = 2

    def __init__(
        self,
        supplement: Supplement | str | None = None,
        standardise: bool = True,
        units: bool = False,
        edges: bool | None = None,
        operation_wise: bool = True,
        initialise: bool = True,
        layers: str = "ensemble",
        epochs: int = 150,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        transfer_epochs: int | None = None,
        transfer_learning_rate: float | None = None,
        transfer_batch_size: int = 128,
        pairs: int = 4,
        margin: float = 0.1,
        seed: int = 0,
    ) -> None:
        if layers not in LAYERS:
            raise UsageError(unknown("layers", layers, LAYERS))
        if isinstance(supplement, str) and supplement:
            encoding_names(supplement)
        self.supplement = supplement
        self.supplement_ = None if isinstance(supplement, str) else supplement
        self.operation_wise = operation_wise
        self.initialise = initialise
        self.layers = layers
        self.standardise = standardise
        self.units = units
        self.edges = edges
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.transfer_epochs = transfer_epochs
        self.transfer_learning_rate = transfer_learning_rate
        self.transfer_batch_size = transfer_batch_size
        self.pairs = pairs
        self.margin = margin
        self.seed = seed

    def _learn(self, sources: Sequence[Source]) -> None:
        if isinstance(self.supplement, str):
            self.supplement_ = supplement_of(self.supplement, self.space)
        architectures, rows = self._prepare(sources)
        device = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        latency = np.concatenate([_from_0_to_1(source.latency_ms) for source in sources])
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = self._network(architectures)
            self._train(
                self.network_,
                architectures,
                rows,
                torch.from_numpy(device),
                torch.from_numpy(latency),
                (self.epochs, self.batch_size, self.learning_rate),
            )

    def _restore(
        self, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
    ) -> None:
        if isinstance(self.supplement, str):
            self.supplement_ = supplement_of(self.supplement, self.space, trained)
        architectures, _ = self._prepare(sources)
        self.network_ = load_weights(self._network(architectures), trained, "network").eval()

    def trained(self) -> Mapping[str, NDArray[np.generic]]:
        arrays = weights(self.network_, "network")
        if isinstance(self.supplement, str) and self.supplement_ is not None:
            arrays |= supplement_weights(self.supplement_)
        return arrays

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        super().check(space, sources)
        if isinstance(self.supplement, str):
            check_encodings(self.supplement)

    def _prepare(self, sources: Sequence[Source]) -> tuple[Architectures, Tensor]:
        """Return each architecture of the sources once, and the sources' rows of these."""
        self.source_names_ = tuple(source.name for source in sources)
        self._encoder = GraphEncoder(self.space)
        every = np.concatenate([source.codes for source in sources])
        shape = every.shape[1:]
        # Most sources share architectures: encode each once.
        flat, rows = np.unique(every.reshape(len(every), -1), axis=0, return_inverse=True)
        codes = flat.reshape(-1, *shape)
        if self.supplement_ is not None and self.standardise:
            values = np.asarray(self.supplement_.encode_codes(codes), dtype=np.float64)
            sd = values.std(axis=0)
            self._mean, self._sd = values.mean(axis=0), np.where(sd > 0, sd, 1)
        return self._architectures(codes), torch.from_numpy(rows)

    def _network(self, architectures: Architectures) -> NasflatNetwork:
        return NasflatNetwork(
            architectures.operations.shape[-1],
            len(self.source_names_) + 1,  # the last embedding is the new device's
            0 if architectures.supplement is None else architectures.supplement.shape[-1],
            self.operation_wise,
            self.layers,
        )

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        architectures = self._architectures(codes)
        count, sources = len(codes), len(self.source_names_)
        cells = bool(self.space.wiring)
        epochs = (40 if cells else 30) if self.transfer_epochs is None else self.transfer_epochs
        rate = self.transfer_learning_rate
        if rate is None:
            rate = 3e-3 if cells else 1e-3
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            merit = [
                _correlation(self._scores(self.network_, architectures, number), latency_ms)
                for number in range(sources)
            ]
            nearest = int(np.argmax(merit))
            self.nearest_ = self.source_names_[nearest]
            self.adapted_network_ = copy.deepcopy(self.network_)
            if self.initialise:
                embeddings = self.adapted_network_.device.weight.detach()
                embeddings[sources] = embeddings[nearest]
            self._train(
                self.adapted_network_,
                architectures,
                torch.arange(count),
                torch.full((count,), sources),
                torch.from_numpy(_from_0_to_1(latency_ms)),
                (epochs, self.transfer_batch_size, rate),
            )

    def _predict(self, codes: Codes) -> Floats:
        with one_thread():
            return self._scores(
                self.adapted_network_, self._architectures(codes), len(self.source_names_)
            )

    def _architectures(self, codes: Codes) -> Architectures:
        encodings = torch.from_numpy(self._encoder.encode_codes(codes))
        columns = GraphColumns(self._encoder.layout)
        operations = columns.operations_of(encodings)
        count = operations.any(dim=-1).float()
        incoming: Tensor | None = None
        if self._edges():
            incoming = columns.adjacency_of(encodings).mT
            incoming = (incoming[:1] if (incoming == incoming[:1]).all() else incoming).contiguous()
        elif not self.units:
            operations, count = self._by_operation(operations)
        supplement = None
        if self.supplement_ is not None:
            values = np.asarray(self.supplement_.encode_codes(codes), dtype=np.float64)
            if self.standardise:
                values = (values - self._mean) / self._sd
            supplement = torch.from_numpy(values.astype(np.float32))
        return Architectures(
            operations[..., self._features(operations.shape[-1])].contiguous(),
            incoming,
            None if (count == 1).all() else count,
            supplement,
        )

    def _edges(self) -> bool:
        return bool(self.space.wiring) if self.edges is None else self.edges

    def _by_operation(self, operations: Tensor) -> tuple[Tensor, Tensor]:
        """Return input, one node per option and output, and the count of each."""
        options = len(self.space.options)
        inner = operations[:, 1:-1]
        count = inner[..., :options].sum(dim=1)
        kinds = torch.zeros(len(inner), options + 2, inner.shape[-1])
        kinds[:, 1:-1, :options] = torch.eye(options)
        rest = self._rest()
        kinds[..., rest:] = operations[:, :1, rest:]  # those of the whole network
        return kinds, nn.functional.pad(count, (1, 1), value=1.0)

    def _features(self, width: int) -> list[int]:
        """Return the features of a node, of ``width``, on which its embedding depends."""
        options = len(self.space.options)
        units = self.space.unit_count if self.space.unit_count > 1 else 0
        first = options + 2  # input and output have embeddings of their own
        return [
            *range(options),
            *range(first, first + units if self.units else first),
            *range(self._rest(), width),
        ]

    def _rest(self) -> int:
        """Return the first feature of a node after those of options and units."""
        units = self.space.unit_count if self.space.unit_count > 1 else 0
        return len(self.space.options) + 2 + units

    def _train(
        self,
        network: NasflatNetwork,
        architectures: Architectures,
        rows: Tensor,
        device: Tensor,
        latency: Tensor,
        settings: tuple[int, int, float],
    ) -> None:
        """Train on pairs of samples, which are ``rows`` of the architectures on devices."""
        epochs, batch_size, rate = settings
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=rate, weight_decay=self.weight_decay, fused=True
        )
        network.train()
        for epoch in range(epochs):
            along = (1 + math.cos(math.pi * epoch / epochs)) / 2
            optimizer.param_groups[0]["lr"] = _LEAST_RATE + along * (rate - _LEAST_RATE)
            for batch in torch.randperm(len(rows)).split(batch_size):
                slower, faster = draw_pairs(latency[batch], self.pairs)
                if not len(slower):
                    continue
                scores = network(architectures.take(rows[batch]), device[batch])
                optimizer.zero_grad()
                pairwise_hinge(scores, slower, faster, self.margin).backward()
                optimizer.step()
        network.eval()

    def _scores(self, network: NasflatNetwork, architectures: Architectures, device: int) -> Floats:
        with torch.inference_mode():
            parts = [
                network(architectures.take(rows), torch.full((len(rows),), device))
                for rows in torch.arange(len(architectures)).split(_ROWS)
            ]
            scores: Floats = torch.cat(parts).numpy().astype(np.float64)
        return scores


def _from_0_to_1(latency_ms: Floats) -> Floats:
    least, most = float(latency_ms.min()), float(latency_ms.max())
    return (latency_ms - least) / ((most - least) or 1.0)


def _correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation; 0 if one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
