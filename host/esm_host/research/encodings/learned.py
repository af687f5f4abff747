"""Base class of encodings that a network learns from architectures without latencies."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esm_host.encoding.base import Encoder
from esm_host.encoding.graphs import GraphEncoder
from esm_host.errors import DatasetError, UsageError
from esm_host.predictors.networks import GraphColumns, one_thread
from esm_host.research.transfer.weights import load_weights, weights
from esm_host.sampling.base import draw_options
from esm_models.space import Codes, SearchSpace

_ROWS = 1024  # graphs per step


@dataclass(frozen=True)
class Graphs:
    """Graphs of ``n`` architectures, as of :class:`esm_host.encoding.graphs.GraphEncoder`.

    Attributes:
        operations: Features of the nodes, ``(n, nodes, features)``. The first are one-hot
            operations, ending with those of input and output.
        adjacency: Edges from row to column, ``(n, nodes, nodes)``.
    """

    operations: Tensor
    adjacency: Tensor

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, rows: Tensor) -> Graphs:
        return Graphs(self.operations[rows], self.adjacency[rows])

    @property
    def present(self) -> Tensor:
        """Presence of each node, ``(n, nodes)``."""
        return self.operations.any(dim=-1)


class LearnedEncoder(Encoder):
    """Hidden vector of a network, trained by :meth:`fit` or read by :meth:`load`.

    It suits any search space. Subclasses have the hyperparameters ``dimension``, ``samples`` and
    ``seed``, and keep all arguments under their names.
    """

    with_resolution = False
    with_choices = False

    dimension: int
    samples: int
    seed: int

    def __init__(self, space: SearchSpace) -> None:
        self._graph_encoder = GraphEncoder(space)
        self._graph_columns = GraphColumns(self._graph_encoder.layout)
        self.network_: nn.Module | None = None
        super().__init__(space)

    @abstractmethod
    def _network(self, nodes: int, features: int, operations: int) -> nn.Module:
        """Draw the network."""

    @abstractmethod
    def _train(self, network: nn.Module, graphs: Graphs, codes: Codes) -> None: ...

    @abstractmethod
    def _vectors(self, network: nn.Module, graphs: Graphs) -> Tensor:
        """Return the vectors, ``(n, dimension)``."""

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor, without the space."""
        names = list(inspect.signature(type(self)).parameters)
        return {name: getattr(self, name) for name in names[1:]}

    def fit(self, codes: Codes | None = None) -> Self:
        """Train the network on architectures.

        Args:
            codes: Architectures; None draws ``samples`` from the space, with every choice uniform.

        Raises:
            ValueError: the codes are of another space, or there are none.
        """
        if codes is None:
            rng = np.random.default_rng(self.seed)
            depths = [rng.choice(depths, size=self.samples) for depths in self.space.depths]
            codes = draw_options(self.space, np.stack(depths, axis=1), rng)
        graphs = self._graphs(self._graph_encoder.encode_codes(codes))
        if not len(graphs):
            raise ValueError("no architectures to learn from")
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._new()
            self._train(network.train(), graphs, codes)
        self.network_ = network.eval()
        return self

    def trained(self) -> dict[str, NDArray[Any]]:
        """Return the network's weights by name, for :meth:`restore`.

        Raises:
            ValueError: the network is not trained.
        """
        return weights(self._learned(), self.name)

    def restore(self, trained: Mapping[str, NDArray[np.generic]]) -> Self:
        """Take weights from :meth:`trained` instead of training."""
        self.network_ = load_weights(self._new(), trained, self.name).eval()
        return self

    def save(self, path: Path) -> None:
        """Write the settings and the weights as a NumPy archive.

        Raises:
            ValueError: the network is not trained.
        """
        about = {
            "encoding": self.name,
            "space": self.space.settings(),
            "settings": self._settings(),
        }
        state = self._learned().state_dict()
        arrays = {f"network.{name}": value.numpy() for name, value in state.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> Self:
        """Read the file that :meth:`save` writes, without pickled objects.

        Raises:
            UsageError: there is no such file, or it is of another encoding or space.
            DatasetError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                state = {
                    name.removeprefix("network."): torch.from_numpy(arrays[name])
                    for name in arrays.files
                    if name.startswith("network.")
                }
            kind, settings, given = about["encoding"], about["settings"], about["space"]
        except FileNotFoundError as error:
            raise UsageError(f"there is no {path}") from error
        except Exception as error:  # numpy, zipfile and json raise many classes
            raise DatasetError(f"{path} is not a learned encoding, or is damaged") from error
        if kind != cls.name:
            raise UsageError(f"{path} is of encoding {kind}, not {cls.name}")
        if given != space.settings():
            raise UsageError(f"{path} was learned of another space: {given}")
        try:
            found = cls(space, **settings)
            network = found._new()
            network.load_state_dict(state)
        except (TypeError, RuntimeError) as error:
            raise DatasetError(f"{path} does not fit this version: learn it again") from error
        found.network_ = network.eval()
        return found

    def _new(self) -> nn.Module:
        columns = self._graph_columns
        return self._network(columns.nodes, columns.operations, len(self.space.options) + 2)

    def _learned(self) -> nn.Module:
        if self.network_ is None:
            raise ValueError(f"encoding {self.name} is not trained yet: call fit or load first")
        return self.network_

    def _columns(self) -> list[str]:
        return [f"{self.name}.{number}" for number in range(self.dimension)]

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        network = self._learned()
        with one_thread(), torch.inference_mode():
            encoded = self._graph_encoder._encode_all(codes, resolution)
            parts = [
                self._vectors(network, self._graphs(encoded[begin : begin + _ROWS]))
                for begin in range(0, len(encoded), _ROWS)
            ]
            vectors: NDArray[np.float32] = torch.cat(parts).numpy()
        return vectors

    def _graphs(self, encoded: NDArray[np.generic]) -> Graphs:
        x = torch.from_numpy(encoded.astype(np.float32, copy=False))
        return Graphs(self._graph_columns.operations_of(x), self._graph_columns.adjacency_of(x))
