"""Forms of a measurement, and the number of their conversions in a small campaign.

    python -m benchmarks.forms

Runs a campaign of 60 models in three rounds on a device that answers at once, reads it as
``Run.measurements()`` does, and prints how often each was done. Then it lists the forms in which a
measurement exists, from the run on the agent to a column of ``Run.measurements()``. Nothing is
timed; the numbers are the same on every machine.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import esm_host
from esm_host.dataset.store import Store
from esm_host.extension.settings import Settings
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.estimates import BlockRuns
from esm_protos.messages import MeasureSpec, Model

MODELS, ROUNDS, REFERENCES = 60, 3, 5

FORMS = (
    ("esm_agent.measure.timing:Samples", "runs of a model, lists of integers"),
    ("esm_protos.messages:Measurement", "arrays, on the agent and on the host"),
    ("esm_agent.measure.process:JobResult", "measurements of a job"),
    ("esm_protos.messages:BlockResult", "measurements of a block"),
    ("esm_protos.v1.profiler_pb2:ModelResult", "message on the wire"),
    ("esm_host.dataset.lanes:MeasuredBlock", "block with its device"),
    ("esm_host.dataset.rows:to_row", "dict of columns"),
    ("esm_host.dataset.schema:MEASUREMENTS", "row of the store"),
    ("esm_host.dataset.usual_pace:Block", "measurements of a stored block"),
    ("esm_protos.estimates:Runs", "arrays and what an estimate needs of the model"),
    ("esm_protos.estimates:Estimate", "latency and interval"),
    ("esm_protos.estimates:BlockEstimate", "estimates of a block, a list"),
    ("esm_host.dataset.table:BlockTable", "models by block"),
    ("esm_host.dataset.table:Dataset", "arrays, a row per architecture"),
    ("esm_host.campaign.run:_Records", "data set and table of a run"),
    ("pandas:DataFrame", "Run.measurements()"),
)
"""Forms of a measurement: the code that creates or holds it, and its form there."""


@contextmanager
def counted(owner: Any, name: str, counts: Counter[str], label: str) -> Iterator[None]:
    """Count the calls of a method or class method while the context is open."""
    own = owner.__dict__[name]
    call: Callable[..., Any] = own.__func__ if isinstance(own, classmethod) else own

    def counting(*arguments: Any, **options: Any) -> Any:
        counts[label] += 1
        return call(*arguments, **options)

    with patch.object(owner, name, classmethod(counting) if call is not own else counting):
        yield


def latency(model: Model) -> float:
    """Return a latency, ms, that depends on the model's id, so that no predictor learns it."""
    return model.size_bytes / 1e4 * (1 + int(model.model_id, 16) % 1000 / 1000)


def campaign_counts() -> Counter[str]:
    """Return the counts in a campaign of three rounds and in reading it."""
    settings = Settings(
        device="fake",
        resolution=32,
        width_mult=0.25,
        initial=20,
        step=20,
        bins=2,
        predictor="ridge",
        block_size=10,
        max_models=MODELS,
        references=REFERENCES,
        target_accuracy_percent=100,
        spec=MeasureSpec(runs=12, references=True),
    )
    counts: Counter[str] = Counter()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        device = FakeProfiler(latency, noise=0.01)
        stack.enter_context(patch.object(devices, "connect", lambda name: device))
        for method, label in (("from_json", "from JSON"), ("from_text", "from text")):
            stack.enter_context(counted(Architecture, method, counts, f"architectures {label}"))
        stack.enter_context(counted(Store, "plan", counts, "Store.plan() called"))
        stack.enter_context(counted(BlockRuns, "__init__", counts, "runs of blocks analysed"))
        run = esm_host.profile(settings, folder)
        assert run.result is not None
        assert len(run.result["rounds"]) == ROUNDS
        assert len(run.measurements()) == MODELS
    return counts


def forms() -> list[tuple[str, str]]:
    """Return the forms of a measurement, each with its description.

    Raises:
        AttributeError: one of them is gone; take it off the list.
    """
    for place, _ in FORMS:
        module, _, name = place.partition(":")
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    return list(FORMS)


def main() -> None:
    counts = campaign_counts()
    read = counts["architectures from JSON"] + counts["architectures from text"]
    print(f"campaign of {MODELS} models in {ROUNDS} rounds, {REFERENCES} reference models")
    for label, count in counts.items():
        print(f"  {label:31} {count:5}")
    print(f"  parsed, per architecture        {read / (MODELS + REFERENCES):5.1f}")
    print(f"forms of a measurement: {len(FORMS)}")
    for place, text in forms():
        print(f"  {place:45} {text}")


if __name__ == "__main__":
    main()
