"""ONNX Runtime's CUDA provider: inputs and outputs stay on the GPU, copies are timed apart.

What is timed is ``run_with_iobinding`` on buffers that were placed before, and a synchronisation
of the device after it. By default the run itself waits for the provider's stream at its end; the
second wait costs microseconds and does not depend on that default.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from esm_agent.measure import feeds, profiling
from esm_agent.measure.backends import (
    DeviceModel,
    ProviderMissingError,
    first_run,
    first_run_error,
    load_error,
    session_options,
)
from esm_agent.measure.binding import values
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.onnx_values import packed
from esm_agent.measure.outcomes import ModelError, failure_kind, one_line
from esm_protos.messages import FailureKind, MeasureSpec, Profile
from esm_protos.text import install
from esm_protos.value_types import BY_NUMBER

PROVIDER = "CUDAExecutionProvider"
CONV_SEARCH = "EXHAUSTIVE"
"""cuDNN times its algorithms and takes the fastest: the runtime's own default, stated."""

_PROBE = UploadedModel("probe", Path(__file__).parents[1] / "reference_models" / "arithmetic.onnx")
_MEMORY = "cuda"
_SHOWN_NODES = 5
_SMALL_TENSOR = 100
"""Numbers: what the runtime itself takes for a shape when it moves its arithmetic to the CPU."""

# cudaGetErrorString of those errors after which nothing works in the process any more.
_FATAL = re.compile(
    "uncorrectable (ECC|NVLink) error|illegal memory access|launch timed out|device-side assert|"
    "hardware stack error|illegal instruction|misaligned address|global/shared address space|"
    "invalid program counter|unspecified launch failure"
)


class DeviceLostError(BaseException):
    """CUDA is of no more use to this process. No ``except Exception`` may keep it alive: the
    agent starts another, and finds out which model it was."""


class Placement(NamedTuple):
    """Where the nodes of a model ran, what came out, and of what."""

    ran_on: tuple[tuple[str, int], ...]
    fallback: tuple[str, ...]
    outputs: list[Any]
    feed: Feed


class Cuda:
    """The CUDA provider on one GPU.

    Args:
        gpu: among those that CUDA may see, in the order of nvidia-smi.
        runtime: the module onnxruntime; for tests.

    Raises:
        ProviderMissingError: no model runs on it.
    """

    provider = "cuda"

    def __init__(self, gpu: int = 0, runtime: Any = onnxruntime) -> None:
        self._ort = runtime
        self._gpu = gpu
        if PROVIDER not in runtime.get_available_providers():
            raise ProviderMissingError(
                "no provider cuda: this onnxruntime has none (in an environment of its own, "
                f"{install('agent-cuda')})"
            )
        # As nvidia-smi and NVML count; by itself CUDA begins with the fastest.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        if hasattr(runtime, "preload_dlls"):  # since 1.21; finds the libraries that pip installed
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the agent's address
                runtime.preload_dlls()
        try:
            first_run(self.load(_PROBE, MeasureSpec(provider=self.provider)))
        except (ModelError, DeviceLostError) as error:
            raise ProviderMissingError(f"no provider cuda on GPU {gpu}: {error}") from error

    def load(self, model: UploadedModel, spec: MeasureSpec) -> DeviceModel:
        """As :meth:`esm_agent.measure.backends.Backend.load`.

        Raises:
            DeviceLostError: the process must end.
        """
        placement = self._placement(model, spec)
        if placement.fallback and not spec.allow_fallback:
            raise ModelError(FailureKind.UNSUPPORTED_OP, _refusal(placement))
        options, weights = session_options(model, spec)
        settings = self.settings(spec, CONV_SEARCH, spec.cuda_graph)
        session = self._session(model, options, settings)
        del weights
        try:
            return self._bound(session, placement)
        except ModelError:
            raise
        except Exception as error:
            raise _outcome(error) from error

    def profile(
        self, model: UploadedModel, spec: MeasureSpec, runs: int, between: Callable[[float], None]
    ) -> Profile:
        """As :meth:`esm_agent.measure.backends.Backend.profile`; times are those of launches.

        Raises:
            DeviceLostError: the process must end.
        """
        # A replayed graph has no nodes to tell of.
        settings = self.settings(spec, CONV_SEARCH, False)
        with profiling.folder() as prefix:
            session, feed = self._profiled(model, spec, settings, prefix)
            try:
                run = partial(_run, session, feed)
                return profiling.profile(session, run, spec.warmup, runs, between)
            except ModelError:
                raise
            except Exception as error:
                raise _outcome(error) from error

    def settings(self, spec: MeasureSpec, conv_search: str, cuda_graph: bool) -> dict[str, str]:
        """The provider's options; whatever changes latencies is stated, also the defaults."""
        return {
            "device_id": str(self._gpu),
            "use_tf32": str(int(spec.tf32)),
            "enable_cuda_graph": str(int(cuda_graph)),
            "cudnn_conv_algo_search": conv_search,
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            # A block's models share the memory: no session takes twice what it needs.
            "arena_extend_strategy": "kSameAsRequested",
        }

    def _session(self, model: UploadedModel, options: Any, settings: dict[str, str]) -> Any:
        providers = [(PROVIDER, settings), "CPUExecutionProvider"]
        try:
            session = self._ort.InferenceSession(
                str(model.path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:
            _check_lost(error)
            raise load_error(error, model.path) from error
        if PROVIDER not in session.get_providers():  # it warns, and goes on without
            raise ModelError(
                FailureKind.CRASH,
                "the CUDA provider did not load, the agent's log says why: most often libraries of "
                f"CUDA or cuDNN are missing ({install('agent-cuda')}), or nvidia-smi shows no GPU",
            )
        return session

    def _profiled(
        self, model: UploadedModel, spec: MeasureSpec, settings: dict[str, str], prefix: str
    ) -> tuple[Any, Feed]:
        """A session that writes a profile, and what to feed it."""
        options, weights = session_options(model, spec)
        profiling.enable(options, prefix)
        session = self._session(model, options, settings)
        del weights
        feed = feeds.draw(session, spec.seed, model.case, model.inputs, model.path)
        for name, kind in feed.types.items():
            if kind.is_sequence or kind.element.name == "string":
                text = f"input {name} is of type {kind}, which is not put on a GPU here"
                raise ModelError(FailureKind.UNSUPPORTED_OP, text)
        return session, feed

    def _placement(self, model: UploadedModel, spec: MeasureSpec) -> Placement:
        """From a profiled run of a session of its own: what the runtime did, not what it planned.

        Every onnxruntime that we support profiles; what tells without a run is newer. Its option
        ``session.disable_cpu_ep_fallback`` names no node, and objects to arithmetic on shapes too.
        """
        # Which algorithm and how it is launched makes no difference to where it runs.
        settings = self.settings(spec, "HEURISTIC", False)
        with profiling.folder() as prefix:
            session, feed = self._profiled(model, spec, settings, prefix)
            try:
                outputs = _run(session, feed)
            except Exception as error:
                raise first_run_error(_outcome(error), feed) from error
            events = profiling.events(session)
        return Placement(*nodes_by_provider(events), outputs, feed)

    def _bound(self, session: Any, placement: Placement) -> DeviceModel:
        """The session with its buffers on the GPU, at addresses that stay."""
        make = self._ort.OrtValue
        binding = session.io_binding()
        feed = placement.feed
        inputs = []
        for name, array in feed.arrays.items():
            if array is None:  # an absent optional value
                continue
            element = feed.types[name].element
            stored = packed(array, element.bits) if element.bits < 8 else array
            value = make.ortvalue_from_numpy(stored, _MEMORY, self._gpu)
            if element.in_numpy:
                binding.bind_ortvalue_input(name, value)
            else:  # copied as its bits, and told to the runtime as what it is
                where = (_MEMORY, self._gpu, element.number, array.shape, value.data_ptr())
                binding.bind_input(name, *where)
            inputs.append((value, stored))
        outputs = []
        for meta, output in zip(session.get_outputs(), placement.outputs, strict=True):
            known = BY_NUMBER.get(output.element_type()) if output.is_tensor() else None
            if known is None or known.name == "string":
                text = f"output {meta.name} is no tensor of numbers: {meta.type}"
                raise ModelError(FailureKind.UNSUPPORTED_OP, text)
            dims = tuple(output.shape())
            small = known.bits < 8
            held = (known.stored_bytes(math.prod(dims)),) if small else dims
            kind = np.dtype(known.storage).type
            value = make.ortvalue_from_shape_and_type(held, kind, _MEMORY, self._gpu)
            if known.in_numpy:
                binding.bind_ortvalue_output(meta.name, value)
            else:
                where = (_MEMORY, self._gpu, known.number, dims, value.data_ptr())
                binding.bind_output(meta.name, *where)
            outputs.append(value)
        binding.synchronize_inputs()

        def run() -> None:
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:
                raise _outcome(error) from error

        def copy_in() -> None:
            try:
                for value, array in inputs:
                    value.update_inplace(array)
                binding.synchronize_inputs()  # from memory that may be paged, copies return early
            except Exception as error:
                raise _outcome(error) from error

        def copy_out() -> list[Any]:
            try:
                return [value.numpy() for value in outputs]
            except Exception as error:
                raise _outcome(error) from error

        return DeviceModel(
            run,
            feed,
            copy_in=copy_in,
            copy_out=copy_out,
            ran_on=placement.ran_on,
            fallback=placement.fallback,
        )


def _run(session: Any, feed: Feed) -> Any:
    """One inference from and to the processor's memory; the outputs are the runtime's values."""
    names = [output.name for output in session.get_outputs()]
    return session.run_with_ort_values(names, values(feed))


def nodes_by_provider(
    events: Iterable[dict[str, Any]],
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Nodes per provider, and the names of those that fell back, from a run's profile.

    Copies that the runtime put between providers are no nodes of the model. Arithmetic on shapes
    is one, but no fallback: the runtime keeps it on the CPU on purpose, where a size is needed.
    """
    nodes = {}
    for event in events:
        if not profiling.is_node(event):
            continue
        arguments = event["args"]
        if not arguments["op_name"].startswith("Memcpy"):
            name = event["name"].removesuffix("_kernel_time")
            nodes[name, arguments.get("node_index")] = arguments  # loops run theirs repeatedly
    counts = Counter(arguments["provider"] for arguments in nodes.values())
    fallback = tuple(
        name
        for (name, _), arguments in nodes.items()
        if arguments["provider"] != PROVIDER and not _is_about_shapes(arguments)
    )
    return tuple(counts.most_common()), fallback


def _is_about_shapes(arguments: dict[str, Any]) -> bool:
    """Few whole numbers in, few whole numbers out."""
    outputs = arguments.get("output_type_shape", [])
    tensors = [*arguments.get("input_type_shape", []), *outputs]
    return bool(outputs) and all(
        kind in ("int64", "int32", "bool") and math.prod(shape) <= _SMALL_TENSOR
        for tensor in tensors
        for kind, shape in tensor.items()
    )


def _refusal(placement: Placement) -> str:
    names = ", ".join(placement.fallback[:_SHOWN_NODES])
    more = len(placement.fallback) - _SHOWN_NODES
    total = sum(count for _, count in placement.ran_on)
    return (
        f"{len(placement.fallback)} of {total} nodes did not run on CUDA: {names}"
        f"{f' and {more} more' if more > 0 else ''}; --allow-fallback measures the model as it is"
    )


def _check_lost(error: Exception) -> None:
    """Raise DeviceLostError where the process is lost with the model."""
    if _FATAL.search(str(error)):
        raise DeviceLostError(one_line(error)) from error


def _outcome(error: Exception) -> ModelError:
    """What to report of a model; raises DeviceLostError where the process is lost with it."""
    _check_lost(error)
    text = one_line(error)
    if "as requested by the user" in text:  # its words when a CUDA graph cannot be recorded
        text = f"no CUDA graph can be made of this model, leave --cuda-graph out: {text}"
        return ModelError(FailureKind.UNSUPPORTED_OP, text)
    return ModelError(failure_kind(error), text)
