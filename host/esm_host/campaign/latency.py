"""A campaign's predictor as a function: an architecture in, milliseconds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm_host.campaign.folder import resuming
from esm_host.errors import DatasetError
from esm_host.extension.settings import Settings
from esm_host.parallel import ByValue
from esm_models.architecture import Architecture

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.encoding.sources import SourceModels
    from esm_host.predictors.base import Predictor


class Latency:
    """Latency function of :meth:`esm_host.campaign.run.Run.latency`.

    Call it with an architecture, its JSON or its short form.

    It needs the campaign's folder no more, and can be pickled: other processes predict the same.

    Args:
        path: the campaign's folder, for messages.
        encoder: of the campaign's search space and settings.
        model: the predictor as ONNX, or itself where it has no such form.

    Raises:
        DatasetError: the ONNX model is damaged.

    Example::

        latency = esm_host.load_run("runs/pi4").latency()
        latency(architecture)  # 12.3, milliseconds
    """

    def __init__(
        self, path: Path, settings: Settings, encoder: Encoder, model: bytes | Predictor
    ) -> None:
        self.path = path
        self._settings = settings
        self._encoder = encoder
        self._model = model
        self._predict  # noqa: B018  # a damaged model is told now

    def __call__(self, architecture: Architecture | Mapping[str, Any] | str) -> float:
        """Milliseconds.

        Raises:
            InvalidArchitectureError: it is not in the search space.
        """
        return float(self.many([architecture])[0])

    def many(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str]
    ) -> NDArray[np.float64]:
        """The same of several at once, ``(n,)``, which takes less time than one by one."""
        return self._predict(
            self._encoder.encode([self._encoder.space.read(given) for given in architectures])
        )

    def __repr__(self) -> str:
        return f"<Latency by {self.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Spaces and their tables of parts are made again from the settings: a user's own space is
        # of a module that another process does not have.
        sources: SourceModels | None = getattr(self._encoder, "models", None)
        model = self._model if isinstance(self._model, bytes) else ByValue(self._model)
        return _again, (self.path, self._settings, sources, model)

    @cached_property
    def _predict(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        if not isinstance(self._model, bytes):
            return self._model.predict
        import onnxruntime  # quicker than what was fitted

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # more only wait for each other on one architecture
        try:
            session = onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._damaged(error) from error

        def predict(encodings: NDArray[np.float32]) -> NDArray[np.float64]:
            if not len(encodings):
                return np.zeros(0)
            try:
                (latency_ms,) = session.run(None, {"encoding": encodings})
            except Exception as error:
                raise self._damaged(error) from error
            return np.asarray(latency_ms, dtype=float)

        return predict

    def _damaged(self, error: Exception) -> DatasetError:
        return DatasetError(
            f"the predictor in {self.path} is damaged ({str(error).splitlines()[0]}): "
            f"{resuming(self.path)} writes it again"
        )


def _again(
    path: Path, settings: Settings, sources: SourceModels | None, model: bytes | Predictor
) -> Latency:
    space = settings.search_space()
    if sources is None:
        return Latency(path, settings, settings.encoder(space), model)
    from esm_host.encoding.sources import SourcesEncoder  # slow to load

    return Latency(path, settings, SourcesEncoder(space, sources), model)
