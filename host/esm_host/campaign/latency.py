"""Latency function of a campaign: from an architecture to milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm_host.campaign.folder import resume_command
from esm_host.campaign.measured_contexts import MeasuredContexts
from esm_host.errors import DatasetError, UsageError
from esm_host.extension.settings import Settings
from esm_host.parallel import ByValue
from esm_host.typed import typed
from esm_models.architecture import Architecture

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.encoding.sources import SourceModels
    from esm_host.predictors.base import Predictor


class Latency:
    """Latency function of :meth:`esm_host.campaign.run.Run.latency`.

    Call it with an architecture, its JSON or its short form. It does not need the campaign's
    folder and can be pickled for other processes.

    Args:
        path: Folder of the campaign, for messages.
        settings: Settings of the campaign.
        encoder: Encoder of the campaign's predictor.
        model: Predictor as an ONNX file; the predictor itself if it has no ONNX form.
        contexts: Contexts that the campaign measured; None if there are none.

    Raises:
        DatasetError: the ONNX model is damaged.

    Example::

        latency = esm_host.load_run("runs/pi4").latency()
        latency(architecture)  # 12.3, milliseconds
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        encoder: Encoder,
        model: bytes | Predictor,
        contexts: MeasuredContexts | None = None,
    ) -> None:
        self.path = path
        self._settings = settings
        self._encoder = encoder
        self._model = model
        self._contexts = contexts
        self._predict  # noqa: B018  # reports a damaged model now

    def __call__(self, architecture: Architecture | Mapping[str, Any] | str) -> float:
        """Return the latency of an architecture, ms.

        Raises:
            InvalidArchitectureError: the architecture is not in the search space.
            UsageError: its context is more than 10 times beyond the measured ones, or its
                prediction is infinite.
        """
        return float(self._many([architecture])[0])

    @typed
    def many(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str]
    ) -> NDArray[np.float64]:
        """Return the latencies of several architectures, ms, shape ``(n,)``.

        Faster than one call per architecture.
        """
        return self._many(architectures)

    def _many(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str]
    ) -> NDArray[np.float64]:
        read = [self._encoder.space.read(given) for given in architectures]
        encodings = self._encoder.encode(read)
        if self._contexts is not None:
            self._contexts.check(read)
        latency_ms = self._predict(encodings)
        if np.isinf(latency_ms).any():
            wild = read[int(np.isinf(latency_ms).argmax())].to_text()
            raise UsageError(
                f"the prediction of '{wild}' is infinite: the networks that "
                f"{self.path} measured are too different"
            )
        return latency_ms

    def __repr__(self) -> str:
        return f"<Latency by {self.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # The space is loaded again from the settings: another process has not imported the module
        # of a user's own space.
        sources: SourceModels | None = getattr(self._encoder, "models", None)
        model = self._model if isinstance(self._model, bytes) else ByValue(self._model)
        return _rebuild, (self.path, self._settings, sources, model, self._contexts)

    @cached_property
    def _predict(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        if not isinstance(self._model, bytes):
            return self._model.predict
        import onnxruntime  # faster than the fitted predictor

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # more threads do not help a batch of one
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
            f"{resume_command(self.path)} writes it again"
        )


def _rebuild(
    path: Path,
    settings: Settings,
    sources: SourceModels | None,
    model: bytes | Predictor,
    contexts: MeasuredContexts | None = None,
) -> Latency:
    space = settings.search_space()
    if sources is None:
        return Latency(path, settings, settings.encoder(space), model, contexts)
    from esm_host.encoding.sources import SourcesEncoder  # slow to load

    return Latency(path, settings, SourcesEncoder(space, sources), model, contexts)
