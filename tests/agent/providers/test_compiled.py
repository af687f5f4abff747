"""Compiled models: written once, loaded as the same model, and never for another one."""

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from esm_agent.cli import app
from esm_agent.measure.backends import LoadedModel, first_run
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_agent.providers.built_in import BuiltInProvider
from esm_agent.providers.compiled import VARIABLE, CompiledCache
from esm_agent.providers.cpu import CpuProvider
from esm_agent.providers.plugin import Library, PluginProvider
from esm_protos.messages import Case, FailureKind, MeasureSpec
from tests.agent.fake_runtimes import CPU, OPENVINO, FakeRuntime, device
from tests.helpers import ARITHMETIC

MODEL = UploadedModel("m", ARITHMETIC)
SPEC = MeasureSpec(provider="openvino")


class Compiling(FakeRuntime):
    """A runtime that writes a copy of the model in place of a compiled one.

    Args:
        writes: Whether it writes one, or raises if it is to.
        reads: Whether it can load what it has written.
    """

    def __init__(self, writes: bool | None = True, reads: bool = True, **more: Any) -> None:
        super().__init__([OPENVINO, CPU], **more)
        self.writes, self.reads = writes, reads
        self.paths: list[Path] = []

    def InferenceSession(self, path: str, options: Any, *rest: Any, **named: Any) -> Any:
        self.paths.append(Path(path))
        if Path(path) != ARITHMETIC and not self.reads:
            raise RuntimeError("unhandled exception type 1")
        try:
            target = options.get_session_config_entry("ep.context_file_path")
        except RuntimeError:  # it has none
            target = ""
        if target and self.writes is None:
            raise RuntimeError("no EPContext nodes")
        if target:
            options.add_session_config_entry("ep.context_enable", "0")  # the CPU provider has none
        if target and self.writes:
            shutil.copy(path, target)
        return super().InferenceSession(path, options, *rest, **named)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


def loaded(runtime: FakeRuntime, spec: MeasureSpec = SPEC, **case: Any) -> LoadedModel:
    model = replace(MODEL, case=Case(**case))
    found = BuiltInProvider(OPENVINO, 0, runtime).load(model, spec)
    first_run(found)
    return found


def test_a_model_is_compiled_once_and_is_the_same_from_the_cache(folder: Path) -> None:
    runtime = Compiling()
    fresh, cached = loaded(runtime), loaded(runtime)
    assert (fresh.compiled, cached.compiled) == ("fresh", "cached")
    assert (cached.ran_on, cached.fallback) == (fresh.ran_on, ()) != ((), ())
    outputs = [each.outputs()[0].numpy() for each in (fresh, cached)]
    np.testing.assert_array_equal(*outputs)
    (entry,) = folder.iterdir()
    assert runtime.paths == [ARITHMETIC, entry / "model.onnx"]
    for each in (folder, entry):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "other",
    [
        {"spec": replace(SPEC, seed=1)},
        {"spec": replace(SPEC, threads=2)},
        {"spec": replace(SPEC, provider_options={"x": "1"})},
        {"threads": 3},
    ],
)
def test_other_settings_are_compiled_apart(folder: Path, other: dict[str, Any]) -> None:
    runtime = Compiling()
    assert [loaded(runtime).compiled, loaded(runtime, **other).compiled] == ["fresh", "fresh"]
    assert len(list(folder.iterdir())) == 2


def test_another_version_compiles_again(folder: Path) -> None:
    newer = Compiling()
    newer.__version__ = "2.0"
    assert [loaded(Compiling()).compiled, loaded(newer).compiled] == ["fresh", "fresh"]


@pytest.mark.parametrize("writes", [False, None])
def test_a_provider_that_writes_nothing_is_as_without_a_cache(
    folder: Path, writes: bool | None
) -> None:
    provider = BuiltInProvider(OPENVINO, 0, runtime := Compiling(writes))
    assert [provider.load(MODEL, SPEC).compiled for _ in range(2)] == ["", ""]
    assert list(folder.iterdir()) == []
    assert len(runtime.paths) == (3 if writes is None else 2), "it is asked once"


def test_what_cannot_be_read_is_dropped_and_compiled(folder: Path) -> None:
    runtime = Compiling(reads=False)
    provider = BuiltInProvider(OPENVINO, 0, runtime)
    told = [provider.load(MODEL, SPEC).compiled for _ in range(3)]
    assert told == ["fresh", "", ""], "it is tried once"
    assert list(folder.iterdir()) == []


def test_a_model_with_fallback_is_not_kept(folder: Path) -> None:
    runtime = Compiling(claims=["Conv"])
    with pytest.raises(ModelError, match="did not run on OpenVINO") as caught:
        loaded(runtime)
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP
    allowed = loaded(runtime, replace(SPEC, allow_fallback=True))
    assert (allowed.compiled, bool(allowed.fallback)) == ("", True)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_costs_no_model(folder: Path) -> None:
    folder.touch()
    assert loaded(Compiling()).compiled == ""


def test_a_library_that_was_built_again_compiles_again(folder: Path, tmp_path: Path) -> None:
    library = tmp_path / "libacme.so"
    keys = set()
    for code in ("one", "another"):
        library.write_text(code)
        runtime = FakeRuntime(offered={str(library): [device("AcmeEP")]})
        provider = PluginProvider("acme", Library("Acme", library), "2.0", 0, runtime)
        assert provider.why_not() == ""
        keys.add(provider._compiled_key(MODEL, SPEC))
    assert len(keys) == 2


def test_without_a_folder_and_on_the_cpu_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CpuProvider().load(MODEL, MeasureSpec()).compiled == ""
    monkeypatch.delenv(VARIABLE)
    assert loaded(Compiling()).compiled == ""
    assert not folder.exists()


def test_a_full_cache_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path, max_bytes=250)
    for number, key in enumerate("abc"):
        with cache.writing() as path:
            path.write_bytes(b"x" * 100)
            cache.keep(key, path, (("A", 1),))
        for age, each in enumerate(sorted(tmp_path.iterdir(), reverse=True)):
            os.utime(each, (1000 - age, 1000 - age))
        if number == 1:
            assert cache.find("a") is not None, "it is used now"
    assert {each.name for each in tmp_path.iterdir()} == {"a", "c"}


def test_a_folder_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["serve", "--compiled-cache", str(tmp_path / "file" / "x")])
    assert done.exit_code == 2
    assert "--compiled-cache" in done.stderr
    assert "give another folder" in done.stderr
