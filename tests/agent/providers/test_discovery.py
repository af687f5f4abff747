"""Execution providers that the agent finds: what it says of them, and that none stops it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from esm_agent.errors import ProviderMissingError
from esm_agent.measure.backends import first_run
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.worker import UnusableOptionError, Worker
from esm_agent.providers import ep_library
from esm_agent.providers.base import Provider, Use
from esm_agent.providers.built_in import KNOWN, BuiltInProvider
from esm_agent.providers.cpu import CpuProvider
from esm_agent.providers.discovery import find, plugin_modules
from esm_agent.providers.plugin import Library, PluginProvider
from esm_agent.serving.server import AgentServer
from esm_protos.messages import Case, DeviceState, FailureKind, GpuState, MeasureSpec
from tests.agent import fake_backends, fake_runtimes
from tests.agent.fake_runtimes import CPU, OPENVINO, FakeRuntime, device
from tests.conformance.test_providers import given_to_runtime
from tests.helpers import ARITHMETIC

MODEL = UploadedModel("m", ARITHMETIC)
LIBRARY = "/opt/libacme.so"


def plugin(*offered: Any, name: str = "acme", number: int = 0) -> PluginProvider:
    """A plug-in after its library was registered."""
    runtime = FakeRuntime(offered={LIBRARY: offered})
    provider = PluginProvider(name, Library("Acme", Path(LIBRARY)), "2.0", number, runtime)
    assert provider.why_not() == ""
    return provider


# What is found


def test_providers_of_the_wheel_are_found_but_not_those_with_a_class_or_without_a_device() -> None:
    names = ["AzureExecutionProvider", "CUDAExecutionProvider", OPENVINO, "NewExecutionProvider"]
    found = find(runtime=FakeRuntime([*names, CPU]))
    assert [candidate.info.title for candidate in found] == ["new 1.99", "openvino 1.99"]


def test_names_of_the_table_are_the_runtimes() -> None:
    """ROCm was one of older versions, ggml is a plug-in."""
    assert set(KNOWN) - set(onnxruntime.get_all_providers()) <= {"ROCMExecutionProvider", "ggml"}
    found = [candidate.info for candidate in find(runtime=FakeRuntime(list(KNOWN)))]
    assert sorted(info.name for info in found) == sorted({each.name for each in KNOWN.values()})
    for info in found:
        info.check()


def test_packages_are_found_by_name_or_functions_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in (
        ("onnxruntime_acme", "def get_ep_names(): ...\ndef get_library_path(): ...\n"),
        ("acme_ep", "from .x import get_library_path, get_ep_name\n"),
        ("onnxruntime_ep_bare", "raise SystemExit\n"),
        ("third_ep", "EP_NAME = 'third'\ndef library_path(): ...\n"),
        ("onnxruntime_extensions", "def get_library_path(): ...\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    expected = ["acme_ep", "onnxruntime_acme", "onnxruntime_ep_bare", "third_ep"]
    assert [name for name in plugin_modules() if name in os.listdir(tmp_path)] == expected
    names = [candidate.info.name for candidate in find(runtime=FakeRuntime())]
    assert {"acme-ep", "acme", "bare"} <= {*names}
    assert "onnxruntime_acme" not in sys.modules


@pytest.mark.parametrize(
    ("number", "name", "path"),
    [
        (1, "def get_ep_names(): return ['AcmeEP']", "get_library_path"),
        (2, "def get_ep_name(): return 'AcmeEP'", "get_library_path"),
        (3, "EP_NAME = 'AcmeEP'", "library_path"),
    ],
)
def test_a_package_gives_its_library_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, path: str
) -> None:
    module = f"onnxruntime_acmetest{number}"
    (tmp_path / f"{module}.py").write_text(f"{name}\ndef {path}(): return {LIBRARY!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    runtime = FakeRuntime(offered={LIBRARY: [device("AcmeEP", "NPU")]})
    provider = PluginProvider("a", Library("a", module=module), runtime=runtime)
    assert provider.why_not() == ""
    assert provider.why_not() == "", "a library is registered once"
    assert runtime.registered == [("AcmeEP", LIBRARY)]
    assert (provider.runtime_name, provider.kind) == ("AcmeEP", "NPU")


def test_a_library_that_was_given_is_not_registered_again_by_its_package() -> None:
    runtime = FakeRuntime(offered={LIBRARY: [device("AcmeEP")]})
    given, packaged = (
        PluginProvider(name, Library(name, Path(LIBRARY)), runtime=runtime) for name in "ab"
    )
    assert given.why_not() == ""
    assert packaged.why_not() == f"{LIBRARY}: it is registered already, under another name"
    assert runtime.registered == [("a", LIBRARY)]


def test_what_a_plugin_says_of_itself_is_its_identity() -> None:
    provider = plugin(device("AcmeEP", "GPU", 7), device("AcmeEP", "CPU"))
    info = provider.info(DeviceState(0))
    assert info.line == "acme 2.0: Acme, GPU, CPU"
    assert info.identity == {
        "provider_version": "2.0",
        "provider_devices": "GPU vendor 0x1234 0x7, CPU vendor 0x1234 0x0",
    }
    info.check()


@pytest.mark.parametrize(
    ("offered", "problem"),
    [
        ({LIBRARY: []}, "registered, offers no device on this machine"),
        ({}, r"/opt/libacme.so: Failed to load library /opt/libacme.so: no such file"),
    ],
)
def test_a_plugin_that_does_not_work_says_why(offered: dict, problem: str) -> None:
    provider = PluginProvider(
        "acme", Library("acme", Path(LIBRARY)), runtime=FakeRuntime(offered=offered)
    )
    with pytest.raises(ProviderMissingError) as caught:
        provider.prove()
    assert caught.value.problem == problem
    assert str(caught.value) == f"no provider acme: {problem}"


def test_a_package_that_cannot_be_imported_says_why() -> None:
    provider = PluginProvider("acme", Library("acme", module="no_such_module"))
    assert provider.why_not() == "no_such_module: No module named 'no_such_module'"
    provider = PluginProvider("acme", Library("acme", module="json"))
    assert provider.why_not() == "json: it has none of get_library_path, library_path"


def test_an_accelerator_that_is_emulated_is_chosen_by_default() -> None:
    qnn = "QNNExecutionProvider"
    (option,) = plugin(device(qnn)).options
    assert (option.name, option.default) == ("backend_type", "htp")
    assert plugin(device("qnn")).options == (option,), "registered under this name"
    assert plugin(device(qnn, "NPU")).options == ()


def test_a_provider_of_few_operators_is_announced() -> None:
    """It takes the matrix product of one built-in model, and fails on the other."""

    class Few(FakeRuntime):
        def InferenceSession(self, path: str, *rest: Any, **named: Any) -> Any:
            if "large" not in path:
                raise RuntimeError("only 1-D convolutions")
            return super().InferenceSession(path, *rest, **named)

    (candidate,) = find(runtime=Few([OPENVINO, CPU], claims=["Gemm"]))
    assert candidate.make().name == "openvino"


def test_a_provider_that_runs_no_model_is_not() -> None:
    class Broken(FakeRuntime):
        def InferenceSession(self, *rest: Any, **named: Any) -> Any:
            raise RuntimeError("no driver")

    (candidate,) = find(runtime=Broken([OPENVINO, CPU]))
    with pytest.raises(ProviderMissingError) as caught:
        candidate.make()
    assert caught.value.problem == "no driver"


# What reaches the runtime


def test_options_of_a_plugin_reach_its_device() -> None:
    chosen, other = device("AcmeEP", "GPU", 7), device("AcmeEP", "CPU")
    provider = plugin(device("AcmeEP", "GPU", 6), chosen, other, number=1)
    complete = provider.info(DeviceState(0)).complete
    for options, expected in (
        ({"x": "1"}, ([chosen], {"x": "1"})),
        ({"ep_device": "CPU"}, ([other], {})),
    ):
        told = given_to_runtime(provider, complete(options), Use.TIMED)
        assert told == ([], [("add_provider_for_devices", expected)])


def test_a_plugin_runs_a_model_on_the_device_it_chose() -> None:
    """The library is that of the CPU provider: the runtime has one device of it."""

    class Registered(Library):
        def register(self, runtime: Any) -> str:
            return CPU

    provider = PluginProvider("plugin", Registered("cpu", Path(LIBRARY)))
    provider.prove()
    loaded = provider.load(MODEL, MeasureSpec(provider="plugin"))
    first_run(loaded)
    assert [name for name, _ in loaded.ran_on] == [CPU]
    assert provider.kind == "CPU"


def built_in(runtime: FakeRuntime) -> BuiltInProvider:
    return BuiltInProvider(OPENVINO, 0, runtime)


def test_options_of_a_built_in_provider_reach_it_as_text() -> None:
    runtime = FakeRuntime([OPENVINO, CPU])
    options = {"num_streams": "2"}
    spec = MeasureSpec(provider="openvino", provider_options=options, allow_fallback=True)
    first_run(built_in(runtime).load(MODEL, spec))
    assert {settings["num_streams"] for settings in runtime.settings} == {"2"}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_is_that_of_the_provider_too(threads: int) -> None:
    runtime = FakeRuntime([OPENVINO, CPU])
    model = UploadedModel("m", ARITHMETIC, Case(threads=threads))
    first_run(built_in(runtime).load(model, MeasureSpec(provider="openvino", threads=2)))
    assert {settings["num_of_threads"] for settings in runtime.settings} == {str(threads)}
    assert {options.intra_op_num_threads for options in runtime.options} == {threads}


@pytest.mark.parametrize(
    ("runtime_name", "option"),
    [
        ("ggml", "threads"),
        ("XnnpackExecutionProvider", "intra_op_num_threads"),
        ("NewExecutionProvider", ""),
    ],
)
def test_a_provider_without_an_option_for_threads_says_so(runtime_name: str, option: str) -> None:
    info = BuiltInProvider(runtime_name, 0, FakeRuntime()).info(DeviceState(0))
    assert (info.threads_option, info.chooses_threads) == (option, not option)
    info = plugin(device(runtime_name)).info(DeviceState(0))
    assert (info.threads_option, info.chooses_threads) == (option, not option)
    assert not CpuProvider().info(DeviceState(0)).chooses_threads


def test_the_plugin_of_openvino_takes_threads_in_its_configuration() -> None:
    provider = plugin(device(OPENVINO))
    info = provider.info(DeviceState(0))
    assert (info.threads_option, info.chooses_threads) == ("", False)
    for given, expected in (
        ({}, {"CPU": {"INFERENCE_NUM_THREADS": "2"}}),
        (
            {"load_config": '{"CPU": {"NUM_STREAMS": "1"}, "GPU": {}}'},
            {"CPU": {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2"}, "GPU": {}},
        ),
    ):
        assert json.loads(provider.with_threads(given, 2)["load_config"]) == expected
    for wrong in ("no.json", "[]", '{"CPU": 1}'):
        with pytest.raises(ModelError, match=r"load_config=.*: give JSON, such as"):
            provider.with_threads({"load_config": wrong}, 2)


def test_a_gpu_is_numbered_and_belongs_to_the_identity() -> None:
    provider = BuiltInProvider("TensorrtExecutionProvider", 3, FakeRuntime())
    state = DeviceState(0, gpus=(GpuState("H200"),))
    assert provider.runtime_options({}, Use.TIMED) == {"device_id": "3"}
    assert (provider.name, provider.gpu) == ("tensorrt", True)
    assert provider.identity(state) == {"gpu": "H200"}


@pytest.mark.parametrize(
    "value", ["/tmp/lib.so", "../lib.so", "a/b", '{"CPU": {"CACHE_DIR": "/tmp"}}', "C:\\x.dll"]
)
def test_a_client_names_no_file_of_the_device(value: str) -> None:
    """A provider would load it as code, or write to it."""
    cases: list[tuple[Provider, bool]] = [
        (built_in(FakeRuntime([OPENVINO])), False),
        (plugin(device("AcmeEP")), True),
    ]
    for provider, names_files in cases:
        spec = MeasureSpec(provider=provider.name, provider_options={"path": value})
        with pytest.raises(ModelError, match=r"path=.*: options may not name files") as caught:
            provider.load(MODEL, spec)
        assert caught.value.failure.kind is FailureKind.INVALID_INPUT
        assert ("outside /opt;" in str(caught.value)) == names_files


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cache_dir", "blobs"),
        ("CACHE_DIR", "blobs"),
        ("cacheDir", "blobs"),
        ("ModelCacheDirectory", "blobs"),
        ("load_config", '{"CPU": {"CACHE_DIR": "blobs"}}'),
        ("config_file", "x.json"),
        ("backend_path", "libother.so"),
        ("trt_extra_plugin_lib_paths", "libother.so"),
        ("op_packages", "libother.so:provider"),
        ("trt_engine_cache_enable", "1"),
        ("trt_dump_subgraphs", "1"),
        ("gpu_external_alloc", "140737488355327"),
    ],
)
def test_an_option_that_takes_a_file_takes_none_from_a_client(option: str, value: str) -> None:
    """A bare name is a file in the working folder."""
    for provider in (built_in(FakeRuntime([OPENVINO])), plugin(device("AcmeEP"))):
        spec = MeasureSpec(provider=provider.name, provider_options={option: value})
        with pytest.raises(ModelError, match="options may not name files") as caught:
            provider.load(MODEL, spec)
        assert caught.value.failure.kind is FailureKind.INVALID_INPUT
        assert ("--compiled-cache" in str(caught.value)) == ("cache" in f"{option}{value}".lower())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trt_profile_min_shapes", "x:1x3"),
        ("profiling_level", "basic"),
        ("device_type", "HETERO:GPU,CPU"),
        ("load_config", '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'),
        ("num_streams", "2"),
    ],
)
def test_other_options_are_not_taken_for_files(option: str, value: str) -> None:
    built_in(FakeRuntime())._check_files({option: value})


def test_files_of_a_plugin_may_be_named() -> None:
    plugin(device("AcmeEP"))._check_files({"backend_path": "/opt/libbackend.so"})


class Choosy(FakeRuntime):
    """Has a provider that does not load with one option, and raises an error for another."""

    def InferenceSession(self, path: str, options: Any, providers: list[Any], **named: Any) -> Any:
        settings = providers[0][1] if isinstance(providers[0], tuple) else {}
        if "no_such_option" in settings:
            raise RuntimeError("unknown key no_such_option")
        session = super().InferenceSession(path, options, providers, **named)
        if settings.get("device_type") == "NPU":
            where = "[E:onnxruntime:Default, provider_bridge_ort.cc:1 Create]"
            os.write(2, f"\x1b[1;31m2026 {where} there is no device NPU\x1b[m\n".encode())
            session.get_providers = lambda: [CPU]
        return session


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"no_such_option": "1"}, "no_such_option=1: unknown key no_such_option"),
        (
            {"device_type": "NPU"},
            "device_type=NPU: the OpenVINO provider did not load: there is no device NPU",
        ),
    ],
)
def test_an_option_that_a_provider_refuses_is_one_outcome(
    options: dict[str, str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    provider = built_in(Choosy([OPENVINO, CPU]))
    with pytest.raises(ModelError) as caught:
        provider.load(MODEL, MeasureSpec(provider="openvino", provider_options=options))
    assert caught.value.failure.kind is FailureKind.INVALID_INPUT
    assert str(caught.value) == f"the provider openvino refuses the options {words}"
    first_run(provider.load(MODEL, MeasureSpec(provider="openvino")))
    assert capfd.readouterr().err.count("no device NPU") == 2 * ("device_type" in options)


def test_a_model_that_fails_without_options_too_is_to_blame_itself() -> None:
    class Broken(FakeRuntime):
        def InferenceSession(self, *rest: Any, **named: Any) -> Any:
            raise RuntimeError("only convolutions")

    spec = MeasureSpec(provider="openvino", provider_options={"num_streams": "2"})
    with pytest.raises(ModelError) as caught:
        built_in(Broken([OPENVINO, CPU])).load(MODEL, spec)
    assert str(caught.value) == "only convolutions"
    assert caught.value.failure.kind is FailureKind.INVALID_MODEL


def test_a_provider_that_never_loads_says_why() -> None:
    class Absent(Choosy):
        def InferenceSession(self, path: str, options: Any, providers: Any, **named: Any) -> Any:
            only = [(OPENVINO, {"device_type": "NPU"}), CPU]
            return super().InferenceSession(path, options, only, **named)

    with pytest.raises(ModelError) as caught:
        built_in(Absent([OPENVINO, CPU])).load(MODEL, MeasureSpec(provider="openvino"))
    assert caught.value.failure.kind is FailureKind.CRASH
    assert str(caught.value) == "the OpenVINO provider did not load: there is no device NPU"


def test_a_class_of_another_provider_is_not_derived_from_that_of_the_processor() -> None:
    class Own(CpuProvider):
        name = "own"
        runtime_name = OPENVINO

    own = Own(runtime=FakeRuntime([OPENVINO, CPU]))
    with pytest.raises(ProviderMissingError) as caught:
        own.prove()
    assert "its runtime_name OpenVINOExecutionProvider is not that of" in str(caught.value)
    assert str(caught.value).endswith("derive it from esm_agent.providers.base.Provider")
    assert Own(runtime=FakeRuntime([CPU])).why_not() == "this onnxruntime has none"


# In the measuring process


def idle_worker(find: Any, **settings: Any) -> Worker:
    return Worker(fake_backends.IdleBackend, find=find, **settings)


def test_providers_that_end_the_process_are_named_and_the_others_measure(tmp_path: Path) -> None:
    worker = idle_worker(fake_runtimes.of_all_sorts)
    path = tmp_path / "m"
    path.write_bytes(b"ok")
    try:
        hello = worker.start()
        spec = MeasureSpec(provider="another", runs=2)
        block = UploadedBlock("b", spec, (UploadedModel("m", path),))
        (measured,) = worker.measure(block, lambda told: None, lambda: False).measurements
    finally:
        worker.stop()
    assert [info.name for info in hello.providers] == ["cpu", "other", "another"]
    assert [info.line for info in hello.unusable] == [
        "a 1.0: it stops the measuring process (killed by SIGSEGV)",
        "b 1.0: it stops the measuring process (exit code 3)",
        "c 1.0: registered, no device",
        "other 1.0: there is already a provider 'other': choose another name",
    ]
    assert measured.failure is None


def test_a_provider_that_hangs_is_named() -> None:
    worker = idle_worker(fake_runtimes.with_one_that_hangs, try_timeout_s=1)
    try:
        hello = worker.start()
    finally:
        worker.stop()
    assert [info.name for info in hello.providers] == ["cpu", "other"]
    assert [info.problem for info in hello.unusable] == [
        "it stops the measuring process (no answer for 1 s)"
    ]


def test_noise_of_a_library_is_kept_from_stdout() -> None:
    """The agent's address is read there."""
    program = (
        "from tests.agent import fake_backends, fake_runtimes\n"
        "from esm_agent.measure.worker import Worker\n"
        "worker = Worker(fake_backends.IdleBackend, find=fake_runtimes.with_a_noisy_one)\n"
        "print([info.name for info in worker.start().providers])\n"
        "worker.stop()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("['cpu', 'other']\n", 0)
    assert "noise of a native library" in done.stderr


def test_the_log_of_the_measuring_process_has_the_agents_format() -> None:
    program = (
        "from tests.agent import fake_backends, fake_runtimes\n"
        "from esm_agent.measure.worker import Worker\n"
        "from esm_agent.operation import logs\n"
        "logs.configure(json_lines=True)\n"
        "worker = Worker(fake_backends.IdleBackend, find=fake_runtimes.with_one_that_warns)\n"
        "worker.start()\n"
        "worker.stop()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["event"]) == ("warning", "a compiled model is lost")


# On the command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acme", "acme: give NAME=PATH"),
        ("=/opt/x.so", "=/opt/x.so: give NAME=PATH"),
        ("a b=/opt/x.so", "the name 'a b' is not a name"),
        ("acme=/no/such.so", "there is no file /no/such.so"),
    ],
)
def test_a_library_is_a_name_and_a_file(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ep_library(text)
    with pytest.raises(UnusableOptionError, match="--ep-library "):
        AgentServer("127.0.0.1", 0, ep_libraries=[text])


def test_a_library_that_was_given_and_does_not_work_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libacme.so").write_text("no library")
    AgentServer("127.0.0.1", 0, ep_libraries=[f"acme={tmp_path}/libacme.so"]).stop()
    (record,) = [each for each in caplog.records if "acme" in each.getMessage()]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("--ep-library acme: ")
    assert "libacme.so" in record.getMessage()


def run_agent(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esm_agent.cli", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_device_lists_its_providers(tmp_path: Path) -> None:
    (tmp_path / "libacme.so").write_text("no library")
    done = run_agent("providers", "--ep-library", f"acme={tmp_path}/libacme.so")
    assert done.returncode == 0, done.stderr
    first, cpu, *rest = done.stdout.splitlines()
    assert first == f"onnxruntime {onnxruntime.__version__}"
    title = re.escape(f"cpu {onnxruntime.__version__}: Microsoft, CPU")
    assert re.fullmatch(rf"{title}; built-in model: \d[\d.]* ms", cpu)
    (acme,) = [line for line in rest if line.startswith("acme: ")]
    assert "libacme.so" in acme
    (cuda,) = [line for line in rest if "cuda" in line]
    assert cuda.startswith("no provider cuda: this onnxruntime has none (in an environment of")


def test_a_library_that_is_not_there_is_one_line() -> None:
    for command in (("providers",), ("serve", "--port", "0")):
        done = run_agent(*command, "--ep-library", "acme=/no/such.so")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            "error: --ep-library acme=/no/such.so: there is no file /no/such.so"
        )
