"""What a device does not take is found before anything is sent, by one line with the cure."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from esm_host.cli.app import app
from esm_host.errors import UsageError
from esm_host.timing.model_file import external_locations
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_host.transport.limits import check_campaign, check_models, check_spec
from esm_protos.messages import Block, DeviceInfo, File, Limits, MeasureSpec, Model
from esm_protos.providers import ProviderInfo
from esm_protos.v1 import onnx_view_pb2

LIMITS = Limits(
    max_block_bytes=100_000,
    max_block_models=4,
    max_model_bytes=60_000,
    max_model_nodes=10,
    max_model_parameters=1000,
    max_block_s=100,
)


def graph(nodes: int = 1, parameters: int = 10, location: str = "") -> bytes:
    weight = numpy_helper.from_array(np.ones(parameters, np.float32), "w")
    if location:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    chain = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(nodes)]
    return helper.make_model(helper.make_graph(chain, "g", [], [], [weight])).SerializeToString()


def in_a_branch(inner: bytes) -> bytes:
    """The graph as the branch of another."""
    branch = onnx.ModelProto.FromString(inner).graph
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()


def test_what_fits_passes() -> None:
    check_models(LIMITS, [Model("a", graph(10, 1000)), Model("b", b"not a model")])
    check_campaign(LIMITS, 3, 1, graph(10, 1000))


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([b""] * 5, "5 models: the device accepts 4"),
        ([graph(), graph(11)], r"m1: the model has more nodes than .* 10: give a smaller model"),
        ([in_a_branch(graph(5))], "more nodes"),
        ([graph(1, 1001)], r"m0: .* more parameters than .* 1000: give"),
        ([in_a_branch(graph(1, 501))], "more parameters"),
        ([b"\x4a\xff\xfd\x03" + bytes(65_279)], r"m0: the model has 0 MB.* give a smaller"),
        ([b"\x4a\xbf\xa6\x03" + bytes(54_079)] * 2, "in total: the device accepts"),
    ],
)
def test_models_that_are_too_many_or_too_large_are_refused(models: list[bytes], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_models(LIMITS, [Model(f"m{i}", data) for i, data in enumerate(models)])


@pytest.mark.parametrize(
    ("block_size", "largest", "words"),
    [
        (4, graph(), "block_size 4 and references 1 exceed the device's 4"),
        (2, graph(11), "the space's largest model: .*nodes.* choose a smaller space"),
        (3, b"\x4a\xbf\xa6\x03" + bytes(54_079), "blocks of up to 0 MB.*give less"),
    ],
)
def test_campaigns_of_too_much_are_refused(block_size: int, largest: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_campaign(LIMITS, block_size, 1, largest)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            MeasureSpec(provider="cuda"),
            "provider: unknown execution provider 'cuda' on the device: choose cpu; esm-agent "
            "providers on the device tells why others do not work",
        ),
        (MeasureSpec(threads=9), "threads 9: the device has 1 processor, give 1, or 8 at most"),
        (MeasureSpec(max_block_s=101), "max_time_s 101: .* after 100 s.*--max-block-time"),
    ],
)
def test_settings_that_the_device_cannot_meet_are_refused(spec: MeasureSpec, words: str) -> None:
    device = replace(FakeProfiler(lambda model: 1.0).device_info(), limits=LIMITS)
    check_spec(device, MeasureSpec(max_block_s=100))
    with pytest.raises(UsageError, match=words):
        check_spec(device, spec)


def test_a_provider_that_does_not_work_is_refused_with_the_reason() -> None:
    unusable = ProviderInfo("openvino", version="1.8.1", problem="registered, offers no device")
    device = FakeProfiler(lambda model: 1.0).device_info()
    with pytest.raises(UsageError) as caught:
        check_spec(
            replace(device, unusable_providers=(unusable,)), MeasureSpec(provider="openvino")
        )
    assert str(caught.value) == (
        "provider: openvino 1.8.1: registered, offers no device: choose cpu"
    )


@pytest.mark.parametrize("wrap", [bytes, in_a_branch])
def test_files_beside_the_model_are_named(wrap) -> None:
    def locations(data: bytes) -> list[str]:
        return external_locations(onnx_view_pb2.Model.FromString(wrap(data)))

    assert locations(graph(location="more.bin")) == ["more.bin"]
    assert locations(graph(location="weightless")) == []
    assert locations(graph()) == []


def test_files_for_the_cache_count_once_and_apart() -> None:
    def file(name: str, size: int) -> File:
        return File(name.encode(), size)

    weights = (("w", file("weights", 50_000)),)
    models = [Model("a", file("a", 40_000), external=weights), Model("b", b"", external=weights)]
    parsed = {model.sha256: None for model in models}
    check_models(replace(LIMITS, max_cache_bytes=90_000), models, parsed)
    with pytest.raises(UsageError, match=r"holds 0 MB.*--cache-size"):
        check_models(replace(LIMITS, max_cache_bytes=89_999), models, parsed)
    with pytest.raises(UsageError, match=r"no cache.*esm-agent serve --cache DIR .*XDG_CACHE_HOME"):
        check_models(LIMITS, models, parsed)
    with pytest.raises(UsageError, match="a: the model has 0 MB, above"):
        check_models(replace(LIMITS, max_model_bytes=39_999), models, parsed)


class Small(FakeProfiler):
    def device_info(self) -> DeviceInfo:
        return replace(super().device_info(), limits=LIMITS)

    def submit(self, block: Block):
        raise AssertionError("nothing is to be sent")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["time", "model.onnx"], "more nodes than this device's limit of 10"),
        (["time", "model.onnx", "--max-time", "500"], "--max-time 500"),
        (["profile", "--block-size", "8"], "--block-size 8"),
        (["profile", "--block-size", "2", "--references", "1"], "choose a smaller space"),
    ],
)
def test_the_commands_say_so_before_they_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: Small(lambda model: 1.0))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(graph(11))
    if arguments[0] == "profile":
        arguments = [*arguments, "--run", str(tmp_path / "run"), "--space", "resnet"]
    result = CliRunner().invoke(app, [*arguments, "--device", "small"])
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
