"""Inputs and outputs in a device's own memory: runs copy nothing, copies are timed separately.

A timed run is ``run_with_iobinding`` on preallocated buffers, followed by a synchronization of the
device. By default the run already waits for the provider's stream. The second wait costs
microseconds and makes the timing independent of that default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from esm_agent.measure.backends import DeviceModel
from esm_agent.measure.feeds import Feed
from esm_agent.measure.onnx_values import packed
from esm_agent.measure.outcomes import ModelError
from esm_protos.messages import FailureKind
from esm_protos.value_types import BY_NUMBER


class DeviceMemory:
    """Memory of one device.

    Args:
        name: Name in ``OrtValue``, such as ``"cuda"``.
        device: Number of the device.
        runtime: Module onnxruntime.
    """

    def __init__(self, name: str, device: int, runtime: Any) -> None:
        self._name = name
        self._device = device
        self._runtime = runtime

    def bound(
        self,
        session: Any,
        feed: Feed,
        results: Sequence[Any],
        explain: Callable[[Exception], Exception],
    ) -> DeviceModel:
        """Return a session with its buffers on the device, at fixed addresses.

        Args:
            session: Session of the runtime.
            feed: Inputs.
            results: Outputs of an earlier run, as runtime values.
            explain: Converts an exception of a run or copy into the error to report.

        Raises:
            ModelError: an output is not a tensor of numbers.
        """
        make = self._runtime.OrtValue
        binding = session.io_binding()
        inputs = []
        for name, array in feed.arrays.items():
            if array is None:  # an absent optional value
                continue
            element = feed.types[name].element
            stored = packed(array, element.bits) if element.bits < 8 else array
            value = make.ortvalue_from_numpy(stored, self._name, self._device)
            if element.in_numpy:
                binding.bind_ortvalue_input(name, value)
            else:  # stored as raw bits, bound with its real type
                where = (self._name, self._device, element.number, array.shape, value.data_ptr())
                binding.bind_input(name, *where)
            inputs.append((value, stored))
        outputs = []
        for meta, output in zip(session.get_outputs(), results, strict=True):
            known = BY_NUMBER.get(output.element_type()) if output.is_tensor() else None
            if known is None or known.name == "string":
                text = f"output {meta.name} is not a tensor of numbers: {meta.type}"
                raise ModelError(FailureKind.UNSUPPORTED_OP, text)
            dims = tuple(output.shape())
            small = known.bits < 8
            held = (known.stored_bytes(math.prod(dims)),) if small else dims
            kind = np.dtype(known.storage).type
            value = make.ortvalue_from_shape_and_type(held, kind, self._name, self._device)
            if known.in_numpy:
                binding.bind_ortvalue_output(meta.name, value)
            else:
                where = (self._name, self._device, known.number, dims, value.data_ptr())
                binding.bind_output(meta.name, *where)
            outputs.append(value)
        binding.synchronize_inputs()

        # No context managers: entering one takes a microsecond of the timed run.
        def run() -> None:
            try:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
            except Exception as error:
                raise explain(error) from error

        def copy_in() -> None:
            try:
                for value, array in inputs:
                    value.update_inplace(array)
                binding.synchronize_inputs()  # copies from pageable memory return early
            except Exception as error:
                raise explain(error) from error

        def copy_out() -> list[Any]:
            try:
                return [value.numpy() for value in outputs]
            except Exception as error:
                raise explain(error) from error

        return DeviceModel(run, feed, copy_in=copy_in, copy_out=copy_out)


def check_feed(feed: Feed) -> None:
    """Check that all inputs can be stored in a device's memory.

    Raises:
        ModelError: an input is a sequence or contains strings.
    """
    for name, kind in feed.types.items():
        if kind.is_sequence or kind.element.name == "string":
            text = f"input {name} has type {kind}, which is not supported on a GPU"
            raise ModelError(FailureKind.UNSUPPORTED_OP, text)
