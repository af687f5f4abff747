"""The ONNX project's test cases, with their own inputs and with drawn ones.

By default a few of them; all of them with ``make test-onnx``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_protos.messages import FailureKind, Measurement, MeasureSpec
from tests import onnx_cases
from tests.onnx_cases import CaseFiles

SOME = {
    "test_add_bcast": "add",
    "test_affine_grid_2d": "affinegrid",
    "test_cast_FLOAT_to_INT4": "cast",
    "test_col2im_pads": "col2im",
    "test_cumsum_1d": "cumsum",
    "test_div_int32_trunc": "div",
    "test_expand_dim_changed": "expand",
    "test_gather_elements_1": "gatherelements",
    "test_loop11": "loop",
    "test_melweightmatrix": "melweightmatrix",
    "test_mod_uint8": "mod",
    "test_nllloss_NC": "negativeloglikelihoodloss",
    "test_onehot_with_axis": "onehot",
    "test_optional_get_element_sequence": "optionalgetelement",
    "test_reflect_pad": "pad",
    "test_reduce_sum_do_not_keepdims_example": "reducesum",
    "test_reshape_reordered_last_dims": "reshape",
    "test_resize_downsample_scales_cubic": "resize",
    "test_resize_upsample_sizes_nearest_axes_2_3": "resize",
    "test_rnn_seq_length": "rnn",
    "test_sequence_insert_at_front": "sequenceinsert",
    "test_slice_negative_axes": "slice",
    "test_split_variable_parts_2d_opset18": "split",
    "test_squeeze": "squeeze",
    "test_tile": "tile",
    "test_top_k": "topk",
    "test_training_dropout": "dropout",
    "test_unsqueeze_unsorted_axes": "unsqueeze",
}
"""By the module that makes them."""
MODELS = 100
"""Of a block."""
LEAST_DRAWN = 0.99
"""Share of the cases that succeed with drawn inputs."""
SPEC = MeasureSpec(runs=2, warmup=0, threads=1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(make_provider)
    yield worker
    worker.stop()


def measured(worker: Worker, cases: Sequence[CaseFiles], own: bool) -> dict[str, Measurement]:
    """Every case's result by its name."""
    results = {}
    for first in range(0, len(cases), MODELS):
        models = (
            UploadedModel(case.name, case.model, inputs=case.inputs if own else None)
            for case in cases[first : first + MODELS]
        )
        uploaded = UploadedBlock("b", SPEC, tuple(models))
        done = worker.measure(uploaded, lambda progress: None, lambda: False)
        results |= {each.model_id: each for each in done.measurements}
    return results


def failures(results: dict[str, Measurement]) -> dict[str, str]:
    return {
        name: f"{each.failure.kind.value}: {each.failure.message}"
        for name, each in results.items()
        if each.failure is not None
    }


@pytest.mark.parametrize("own", [True, False], ids=["own inputs", "drawn inputs"])
def test_a_few_cases_of_every_kind_run(worker: Worker, tmp_path: Path, own: bool) -> None:
    cases = onnx_cases.write(tmp_path, SOME)
    assert len(cases) == len(SOME)
    results = measured(worker, cases, own)
    assert failures(results) == {}
    assert all(len(each.latency_ns) == SPEC.runs for each in results.values())


@pytest.mark.onnx
def test_all_cases_that_the_runtime_runs(
    worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = onnx_cases.write(tmp_path)
    names = onnx_cases.runnable(cases)
    running = [case for case in cases if case.name in names]
    others = [case for case in cases if case.name not in names]
    own, drawn = measured(worker, running, True), measured(worker, running, False)
    lacking = measured(worker, others, True)
    with capsys.disabled():
        print(f"\n{len(cases)} cases, of which ONNX Runtime itself runs {len(running)}")
        for title, results in (
            ("with their own inputs", own),
            ("with drawn inputs", drawn),
            ("which the runtime does not run", lacking),
        ):
            kinds = Counter(
                "succeed" if each.failure is None else each.failure.kind.value
                for each in results.values()
            )
            print(
                f"{title}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            )
        for name, text in {**failures(own), **failures(drawn)}.items():
            print(f"  {name}: {text}")
    assert failures(own) == {}
    kinds = {each.failure.kind for each in drawn.values() if each.failure is not None}
    assert kinds <= {FailureKind.INVALID_INPUT, FailureKind.UNSUPPORTED_OP}
    assert len(drawn) - len(failures(drawn)) >= LEAST_DRAWN * len(drawn)
    assert not [each for each in lacking.values() if each.failure is None]
    crashed = [n for n, text in failures(lacking).items() if text.startswith("crash")]
    assert crashed == []
