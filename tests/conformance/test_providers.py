"""Suite of execution providers: CPU on the real runtime, others on a stand-in.

``--plugin path/to/file.py:Class`` runs the suite on a provider of your own.
"""

import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from esm_agent.errors import ProviderMissingError
from esm_agent.measure.backends import first_run
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.worker import Worker
from esm_agent.providers import FAMILY, FIRST, make_provider
from esm_agent.providers.base import Provider, Use
from esm_agent.providers.cpu import CpuProvider
from esm_models.spaces import load_space
from esm_protos import convert
from esm_protos.messages import DeviceState, GpuState, MeasureSpec
from esm_protos.plugins import absolute
from esm_protos.providers import OPTION_TYPES, OptionError
from esm_protos.v1 import profiler_pb2 as pb
from tests.agent import fake_cuda
from tests.helpers import smallest

BUILTIN = list(FAMILY.builtin)
STAND_INS = {"cuda": fake_cuda.working}
STATE = DeviceState(0, gpus=(GpuState("a GPU"),))


@pytest.fixture
def maker(plugin: str) -> Callable[[], Provider]:
    return STAND_INS.get(plugin) or partial(make_provider, absolute(plugin))


@pytest.fixture
def provider(maker: Callable[[], Provider]) -> Provider:
    return maker()


@pytest.fixture
def model(tmp_path: Path) -> UploadedModel:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    path = tmp_path / "model.onnx"
    path.write_bytes(space.build(smallest(space)))
    return UploadedModel("m", path)


def spec(provider: Provider, **options: str) -> MeasureSpec:
    return MeasureSpec(provider=provider.name, provider_options=options, runs=3, warmup=1)


class Session:
    """Notes what a provider sets of a session."""

    def __init__(self) -> None:
        object.__setattr__(self, "told", [])

    def __setattr__(self, name: str, value: Any) -> None:
        self.told.append((name, value))

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.told.append((name, given))


def given_to_runtime(provider: Provider, options: dict[str, str], use: Use) -> object:
    session: Any = Session()
    provider.configure(session, options)
    return provider.providers(options, use), session.told


def test_the_first_of_the_table_needs_no_proof() -> None:
    assert BUILTIN[0] == FIRST


def test_its_names_and_options_make_sense(provider: Provider) -> None:
    info = provider.info(STATE)
    assert re.fullmatch(r"[a-z][\w-]*", info.name)
    assert info.runtime_name in onnxruntime.get_all_providers()
    assert len({option.name for option in info.options}) == len(info.options)
    for option in info.options:
        assert re.fullmatch(r"[a-z]\w*", option.name)
        assert option.type in OPTION_TYPES
        assert option.takes(option.default)
        assert option.help.endswith(".")
    wire = pb.Provider.FromString(convert.provider_to_pb(info).SerializeToString())
    assert convert.provider_from_pb(wire) == info
    assert all(finding.check for finding in provider.findings())


def test_an_unknown_option_or_value_is_one_line_with_what_there_is(provider: Provider) -> None:
    info = provider.info(STATE)
    with pytest.raises(
        OptionError, match=r"no-such=1: unknown option 'no-such' of the provider "
    ) as caught:
        info.complete({"no-such": "1"})
    assert "\n" not in str(caught.value)
    for option in info.options:
        assert option.name in str(caught.value)
        if option.type != "text" or option.choices:
            with pytest.raises(OptionError, match="give "):
                info.complete({option.name: "no such value"})


def test_every_option_reaches_the_runtime(provider: Provider) -> None:
    info = provider.info(STATE)
    stated = given_to_runtime(provider, info.complete({}), Use.TIMED)
    for option in info.options:
        values = {"bool": ("0", "1"), "int": ("0", "7"), "float": ("0.5", "2.5")}.get(
            option.type, option.choices or ("a", "b")
        )
        for value in values:
            if value != option.default:
                other = info.complete({option.name: value})
                assert given_to_runtime(provider, other, Use.TIMED) != stated


@pytest.mark.parametrize("use", Use)
def test_the_runtime_gets_text(provider: Provider, use: Use) -> None:
    for name, options in provider.providers(provider.info(STATE).complete({}), use):
        assert name in onnxruntime.get_all_providers()
        assert all(isinstance(text, str) for text in (*options, *options.values()))


def test_what_decides_latencies_is_text_and_stays(provider: Provider) -> None:
    identity = provider.identity(STATE)
    assert all(isinstance(text, str) and text for text in (*identity, *identity.values()))
    assert provider.identity(STATE) == identity


def test_a_model_gives_what_it_gives_on_the_processor(
    provider: Provider, model: UploadedModel
) -> None:
    loaded = provider.load(model, spec(provider))
    first_run(loaded)
    copy_out = getattr(loaded, "copy_out", None)
    output = copy_out()[0] if copy_out else loaded.outputs()[0].numpy()
    plain = CpuProvider().load(model, MeasureSpec())
    plain.run()
    np.testing.assert_allclose(output, plain.outputs()[0].numpy(), rtol=1e-3, atol=1e-5)


def test_where_nodes_ran_is_known(provider: Provider, model: UploadedModel) -> None:
    loaded = provider.load(model, spec(provider))
    assert loaded.fallback == ()
    told = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    assert bool(loaded.ran_on) == (told or provider.may_fall_back)
    if loaded.ran_on:
        names = {name for name, _ in loaded.ran_on}
        assert names & set(provider.own_names())


def test_a_profile_tells_nodes_of_its_own(provider: Provider, model: UploadedModel) -> None:
    profile = provider.profile(model, spec(provider), 2, lambda share: None)
    assert profile.runs == 2
    assert {node.provider for node in profile.nodes} <= {
        *provider.own_names(),
        CpuProvider.runtime_name,
    }


def test_a_runtime_that_lacks_it_is_named_with_the_provider(provider: Provider) -> None:
    lacking = type("Lacking", (), {"get_available_providers": staticmethod(lambda: ["other"])})
    with pytest.raises(ProviderMissingError, match=f"no provider {provider.name}: ") as caught:
        type(provider)(0, lacking).prove()
    assert "\n" not in str(caught.value)


def test_it_is_made_in_a_process_of_its_own(plugin: str) -> None:
    make = pickle.loads(pickle.dumps(partial(make_provider, plugin, 1)))
    assert (make.func, make.args) == (make_provider, (plugin, 1))


def test_a_measuring_process_times_and_tells_of_it(
    maker: Callable[[], Provider], model: UploadedModel
) -> None:
    worker = Worker(maker, fake_cuda.SteadyGpu)
    try:
        (info,) = worker.start().providers
        block = UploadedBlock("b", MeasureSpec(provider=info.name, runs=3), (model,))
        (measured,) = worker.measure(block, lambda told: None, lambda: False).measurements
    finally:
        worker.stop()
    assert info == maker().info(STATE)
    assert (measured.failure, len(measured.latency_ns)) == (None, 3)
