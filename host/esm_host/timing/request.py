"""Request of a timing: models and their cases, the cross product of a sweep, in one block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.timing.amounts import deciding_inputs
from esm_host.timing.given import Given
from esm_host.timing.inputs import (
    Assumed,
    GivenDim,
    GivenShape,
    Shapes,
    check_fixed,
    check_names,
    check_symbols,
    graph_inputs,
    overridable_inputs,
    parse_dims,
    parse_shape,
    resolve,
    symbols,
    takes_batch,
)
from esm_host.timing.model_file import ModelFile, read_model_file
from esm_host.timing.provider_options import Execution
from esm_protos.messages import MAX_THREADS, Case, File, Model
from esm_protos.text import counted


@dataclass(frozen=True)
class Entry:
    """Model in one case.

    Attributes:
        file: File of the model.
        model: Model as sent to the device; its id is unique in the request.
        batch: Batch size; None if none is given.
        dims: Given sizes of symbols.
        assumed: Dimensions without a given size.
        items: Batch size of an inference; 1 if unknown.
        amounts: Drawn inputs that decide how much is computed, with the operator's type.
        execution: Execution provider; None: that of the block's spec.
    """

    file: ModelFile
    model: Model
    batch: int | None = None
    dims: tuple[tuple[str, int], ...] = ()
    assumed: tuple[Assumed, ...] = ()
    items: int = 1
    amounts: tuple[tuple[str, str], ...] = ()
    execution: Execution | None = None

    @property
    def provider(self) -> str | None:
        """Name of the execution provider; None: the only one."""
        return None if self.execution is None else self.execution.provider

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def inputs_sha256(self) -> str | None:
        inputs = self.model.case.inputs
        return None if inputs is None else inputs.sha256.hex()


def read_request(
    models: Sequence[Path | ModelFile],
    batches: Sequence[int] = (),
    shapes: Sequence[str] = (),
    threads: Sequence[int] = (),
    inputs: Sequence[Path] = (),
    folder: Path | None = None,
    dims: Sequence[str] = (),
    providers: Sequence[Execution] = (),
    free_dims: Mapping[str, int] | None = None,
) -> tuple[Entry, ...]:
    """Read ONNX files and return their cases. The device decides whether they run.

    Args:
        models: Paths, or files read already.
        batches: Batch sizes, for every input whose first dimension is free. Models without such
            an input ignore them, if other models have one.
        shapes: Shapes ``"NAME:1x3x224x224"``; the name of an only input may be left out.
        threads: Thread counts of the runtime. With none or one, the block's spec sets it.
        inputs: Values of inputs: ``.npz`` files, files of ONNX values, or folders of such files.
        folder: Folder for the files of values that are sent; required with ``inputs``.
        dims: Sizes ``"NAME=SIZE"`` or ``"NAME=SIZE,SIZE"`` of symbols; several make a cross
            product, for models that have them.
        providers: Execution providers. With none or one, the block's spec sets it.
        free_dims: Sizes of symbols that the spec's session settings fix, for models that have
            them.

    Raises:
        UsageError: a file cannot be read or is given twice, or a case is impossible.
    """
    for name, values, high in (("batch", batches, 2**31 - 1), ("threads", threads, MAX_THREADS)):
        for value in values:
            if not 1 <= value <= high:
                raise UsageError(f"{argument(name)} {value} is outside 1 to {high}")
        if len(set(values)) < len(values):
            raise UsageError(f"{argument(name)} {','.join(map(str, values))}: give each once")
    given = [parse_shape(text) for text in shapes]
    sweep = parse_dims(dims)
    files = _files(models)
    parsed = {file.path: graph_inputs(file.outline) for file in files if file.outline is not None}
    check_names(given, parsed)
    check_symbols(sweep, parsed)
    fixed = dict(free_dims or {})
    check_fixed(fixed, sweep, parsed)
    known = {
        file.path: (*graph_inputs(file.outline), *overridable_inputs(file.outline))
        for file in files
        if file.outline is not None
    }
    # Like ``dims``, a batch size applies to the models that have a free one, if there are any.
    unbatched = {path for path, own in parsed.items() if not takes_batch(own)}
    if len(unbatched) == len(files):
        unbatched = set()
    fed = Given(inputs, folder or Path(), known)
    return tuple(
        _entry(file, batch, sizes, *shapes, number, execution)
        for file in files
        for batch in ((file.path not in unbatched and batches) or (None,))
        for sizes in _sizes(file, sweep)
        for shapes in [_shapes(file, given, batch, sizes, fed, fixed)]
        for number in (threads if len(threads) > 1 else (0,))
        for execution in (providers if len(providers) > 1 else (None,))
    )


def _sizes(file: ModelFile, sweep: Sequence[GivenDim]) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield the sizes of a model's symbols, case by case."""
    known = [] if file.outline is None else symbols(graph_inputs(file.outline))
    own = [dim for dim in sweep if dim.symbol in known]
    for sizes in product(*(dim.sizes for dim in own)):
        yield tuple(zip((dim.symbol for dim in own), sizes, strict=True))


def _files(models: Sequence[Path | ModelFile]) -> list[ModelFile]:
    seen: set[Path | str] = set()
    files = []
    for model in models:
        file = model if isinstance(model, ModelFile) else read_model_file(model)
        known = file.path if isinstance(model, ModelFile) else model.resolve()
        if seen & {file.path, known}:
            raise UsageError(f"{file.path} is given twice: give each model once")
        seen |= {file.path, known}
        files.append(file)
    return files


def _shapes(
    file: ModelFile,
    given: Sequence[GivenShape],
    batch: int | None,
    dims: tuple[tuple[str, int], ...],
    fed: Given,
    fixed: Mapping[str, int],
) -> tuple[Shapes, tuple[tuple[str, str], ...], File | None]:
    if file.outline is None:
        return Shapes(()), (), None
    inputs = graph_inputs(file.outline)
    own, arrays = fed.of(file.path)
    # Values without dimensions of their own need no shape.
    sized = [each for each in inputs if arrays.get(each.name, each) is not None]
    known = {each.name: array for each in sized if (array := arrays.get(each.name)) is not None}
    own_fixed = {name: size for name, size in fixed.items() if name in symbols(inputs)}
    shapes = resolve(file.path, sized, given, batch, known, dict(dims), own_fixed)
    drawn = [each.name for each in inputs if each.name not in arrays]
    amounts = tuple(deciding_inputs(file.outline, drawn))
    if not (given or arrays or batch or dims):  # the device draws the inputs itself
        shapes = Shapes((), shapes.assumed, shapes.items)
    return shapes, amounts, own


def _entry(
    file: ModelFile,
    batch: int | None,
    dims: tuple[tuple[str, int], ...],
    shapes: Shapes,
    amounts: tuple[tuple[str, str], ...],
    inputs: File | None,
    threads: int,
    execution: Execution | None,
) -> Entry:
    parts = [file.path]
    parts += [f"batch {batch}"] if batch else []
    parts += [f"{symbol}={size}" for symbol, size in dims]
    parts += [counted(threads, "thread")] if threads else []
    parts += [execution.provider] if execution else []
    case = Case(shapes.dims, inputs, threads)
    model = Model(", ".join(parts), file.data, case, file.external)
    return Entry(file, model, batch, dims, shapes.assumed, shapes.items, amounts, execution)
