"""Settings of sessions: what they take, and what a device refuses."""

import re
from typing import Any

import pytest

from esm_protos.messages import MeasureSpec
from esm_protos.session_settings import SessionSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"opt_level": "al"}, "opt_level: unknown value 'al': did you mean 'all'?"),
        ({"execution_mode": "x"}, "execution_mode: unknown value 'x': choose sequential, parallel"),
        ({"inter_op": 2}, "inter_op 2 has no effect with sequential execution"),
        ({"inter_op": 1025, "execution_mode": "parallel"}, "inter_op 1025 is outside 0 to 1024"),
        ({"inter_op": True}, "inter_op True: give a whole number"),
        ({"session_options": {"a": 1}}, "session_options {'a': 1}: give a dictionary of texts"),
        ({"free_dims": {"N": "1"}}, "free_dims {'N': '1'}: give a dictionary of whole numbers"),
        ({"free_dims": {"N": 0}}, "free_dims N=0: give NAME=SIZE"),
        ({"free_dims": {f"N{i}": 1 for i in range(1001)}}, "1001 free_dims: 1000 at most"),
    ],
)
def test_what_is_no_setting_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        SessionSettings(**given)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("session.optimized_model_filepath", "x.onnx", "name files, write files or load code"),
        ("session.enable_profiling", "1", "name files, write files or load code"),
        ("session.collect_node_memory_stats_to_file", "x", "name files"),
        ("session.debug_layout_transformation", "1", "name files"),
        ("session.node_partition_config_file", "x", "name files"),
        ("session.model_external_initializers_file_folder_path", "x", "name files"),
        ("session.load_model_format", "ORT", "name files"),
        ("optimization.memory_optimizer_config", "x", "name files"),
        ("session.resource_cuda_partitioning_settings", "1,x", "name files"),
        ("ep.context_enable", "1", "name files"),
        ("ep.context_file_path", "x", "name files"),
        ("session.custom_op_library", "x", "name files"),
        ("session.own", "../x", "name files"),
        ("session.own", "c:\\x", "name files"),
        ("session.graph_optimization_level", "1", "opt_level sets it"),
        ("session.intra_op_num_threads", "1", "threads sets it"),
        ("session.record_ep_graph_assignment_info", "0", "the agent sets it"),
        ("session own", "1", "give NAME=VALUE"),
        ("session.own", "", "give NAME=VALUE"),
        ("session.own", "x" * 1001, "give NAME=VALUE"),
    ],
)
def test_entries_that_a_device_refuses(name: str, value: str, said: str) -> None:
    refused = SessionSettings(session_options={name: value}).refusal()
    assert refused.startswith(f"{name}={value}: ")
    assert said in refused


@pytest.mark.parametrize(
    "name",
    [
        "session.intra_op.allow_spinning",
        "session.force_spinning_stop",
        "session.set_denormal_as_zero",
        "session.disable_prepacking",
        "session.intra_op_thread_affinities",
        "session.use_env_allocators",
        "optimization.enable_gelu_approximation",
        "mlas.disable_kleidiai",
    ],
)
def test_entries_that_a_device_takes(name: str) -> None:
    assert SessionSettings(session_options={name: "1"}).refusal() == ""


def test_only_changes_are_told() -> None:
    assert SessionSettings().changes() == {}
    settings = SessionSettings("basic", "parallel", 2, {"session.x": "0"}, {"N": 4})
    assert settings.changes() == {
        "opt_level": "basic",
        "execution_mode": "parallel",
        "inter_op": "2",
        "session.x": "0",
        "free_dim N": "4",
    }
    assert len({SessionSettings().key, settings.key, SessionSettings("basic").key}) == 3


def test_each_is_a_value_of_the_specs_json() -> None:
    spec = MeasureSpec(session=SessionSettings("layout", session_options={"session.x": "0"}))
    data = spec.to_json()
    assert (data["opt_level"], data["session_options"]) == ("layout", {"session.x": "0"})
    assert MeasureSpec.from_json(data) == spec
    assert spec != MeasureSpec()
