"""The files of HELP and of HW-NAS-Bench: what they hold, and that they run nothing."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.sources.plain_pickle import PlainPickleError, load_pickle, load_torch
from esm_host.sources.published import read_help, read_hw_nas_bench

CELLS = [
    "|none~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|nor_conv_3x3~1|avg_pool_3x3~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|",
]


def silent(text: str) -> None:
    raise AssertionError(text)


# HELP


def help_folder(folder: Path, zipped: bool = True, **files: Any) -> Path:
    (folder / "latency").mkdir(parents=True)
    files = {"latency/pixel2": [10.5, 20.5], **files}
    for name, content in files.items():
        path = folder / f"{name}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_help_of_nasbench201(tmp_path: Path, zipped: bool, as_text: bool) -> None:
    index = {CELLS[1]: 0, CELLS[0]: 1}
    given = str(index) if as_text else index
    table = read_help(help_folder(tmp_path / "h", zipped, str_arch2idx=given), silent)
    assert (table.name, table.space.name) == ("help-nasbench201", "nasbench201")
    assert table.latency_ms["pixel2"].tolist() == [10.5, 20.5]
    first, second = table.space.decode(table.codes)
    assert [label for unit in first.units for label in unit][:3] == ["nor_conv_3x3"] * 3
    assert second.units[-1][-1] == "avg_pool_3x3"


@pytest.mark.parametrize("zipped", [True, False])
def test_help_of_fbnet(tmp_path: Path, zipped: bool) -> None:
    arch = [[8] * 22, [0] * 21 + [7]]
    table = read_help(help_folder(tmp_path / "h", zipped, arch=arch), silent, "mine")
    assert (table.name, table.space.name) == ("mine", "fbnet")
    first, second = table.space.decode(table.codes)
    assert {label for unit in first.units for label in unit} == {"skip"}
    assert second.units[-1] == ("k5_e6",)


def test_help_of_once_for_all(tmp_path: Path) -> None:
    rows = [
        {"ks": [3, 5, 7, 3] * 5, "e": [4] * 20, "d": [2, 3, 4, 2, 3], "r": [160]},
        {"ks": [7] * 20, "e": [6] * 20, "d": [4] * 5, "r": 224},
    ]
    table = read_help(help_folder(tmp_path / "h", ofa_archs={"arch": rows}), silent)
    first, second = table.space.decode(table.codes)
    assert (first.resolution, second.resolution) == (160, 224)
    assert first.units[0] == ("k3e4", "k5e4")
    assert [len(unit) for unit in first.units] == [2, 3, 4, 2, 3]


def test_devices_of_other_architectures_are_named_and_left_out(tmp_path: Path) -> None:
    files = {"latency/v100": [1.0, 2.0, 3.0], "latency/pixel3": np.array([0.001, 7.0])}
    told: list[str] = []
    table = read_help(help_folder(tmp_path / "h", arch=[[8] * 22] * 2, **files), told.append)
    assert list(table.latency_ms) == ["pixel2", "pixel3"]
    assert np.isnan(table.latency_ms["pixel3"][0])
    assert told == ["v100 has 3 latencies for 2 architectures: left out"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "none of arch.pt, str_arch2idx.pt and ofa_archs.pt"),
        ({"arch": [[9] * 22] * 2}, "block 9"),
        ({"arch": 5}, "no valid architectures of HELP"),
        ({"arch": [["a"] * 22]}, "no valid architectures of HELP"),
        ({"str_arch2idx": {CELLS[0]: 0, CELLS[1]: 2}}, "does not number its cells from 0"),
        ({"str_arch2idx": "{"}, "no valid architectures of HELP"),
        ({"ofa_archs": {"archs": []}}, "no valid architectures of HELP"),
        ({"arch": [[8] * 22] * 3}, "has 3 latencies"),
        ({"arch": [[8] * 22] * 2, "latency/x": {"a": 1}}, "not a list of milliseconds"),
        ({"arch": [[8] * 22] * 2, "latency/x": torch.ones(2)}, "save lists of numbers"),
    ],
)
def test_a_wrong_folder_of_help_is_one_line(
    tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    with pytest.raises(EsmError) as caught:
        read_help(help_folder(tmp_path / "h", **files), lambda text: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="give a folder of HELP's data"):
        read_help(tmp_path, silent)


# HW-NAS-Bench


def operators(rng: np.random.Generator) -> dict[str, float]:
    """A latency for each operator that the benchmark's FBNet for CIFAR-100 may have."""
    names = [
        "ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1",
        "ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1",
        "AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1",
        "FC_Cin1504_Cout100",
    ]
    # Side, channels in and out, stride: the first layer of each stage, and the others.
    for shape in (
        *("32 16 16 1", "32 16 24 1", "32 24 24 1", "32 24 32 2", "16 32 32 1", "16 32 64 2"),
        *("8 64 64 1", "8 64 112 1", "8 112 112 1", "8 112 184 2", "4 184 184 1", "4 184 352 1"),
    ):
        side, before, after, stride = shape.split()
        place = f"H{side}_W{side}_Cin{before}_Cout{after}"
        names.append(f"Skip_{place}_stride{stride}")
        for kernel in (3, 5):
            for expansion, group in ((1, 1), (1, 2), (3, 1), (6, 1)):
                block = f"{place}_exp{expansion}_kernel{kernel}_stride{stride}_group{group}"
                names.append(f"ConvBlock_{block}")
    return dict(zip(names, rng.uniform(0.1, 3, len(names)).tolist(), strict=True))


def hw_nas_bench(rng: np.random.Generator) -> dict[str, Any]:
    config = [{"name": "infer.tiny", "arch_str": cell} for cell in CELLS]
    cells = {
        "config": config,
        "edgegpu_latency": [5.5, 6.5],
        "edgegpu_energy": [1.0, 2.0],
        "pixel3_latency": np.array([3.25, 1e-4]),
        "fpga_latency": [np.float64(2.5), np.float32(1.5)],
    }
    more = {**cells, "config": dict(enumerate(config))}  # some versions number them
    fbnet = {"raspi4_latency": operators(rng), "raspi4_energy": operators(rng)}
    return {"nasbench201": {"cifar10": cells, "ImageNet16-120": more}, "fbnet": fbnet}


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return hw_nas_bench(np.random.default_rng(3))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hw_nas_bench(tmp_path: Path, content: dict[str, Any], protocol: int) -> None:
    path = tmp_path / "hw.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    cifar, imagenet, fbnet = read_hw_nas_bench(path)
    assert [cifar.name, imagenet.name] == ["hw-nas-bench-cifar10", "hw-nas-bench-ImageNet16-120"]
    assert (imagenet.codes == cifar.codes).all()
    for device, expected in (("edgegpu", [5.5, 6.5]), ("pixel3", [3.25, np.nan])):
        np.testing.assert_array_equal(cifar.latency_ms[device], expected)
    assert list(cifar.latency_ms) == ["edgegpu", "pixel3", "fpga"]
    assert cifar.latency_ms["fpga"].tolist() == [2.5, 1.5]
    assert {device: list(mj) for device, mj in cifar.energy_mj.items()} == {"edgegpu": [1.0, 2.0]}
    assert (fbnet.name, list(fbnet.latency_ms), len(fbnet)) == (
        "hw-nas-bench-fbnet",
        ["raspi4"],
        2000,
    )


def test_fbnets_latencies_are_those_of_its_operators_added_up(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = tmp_path / "hw.pickle"
    path.write_bytes(pickle.dumps({"fbnet": content["fbnet"]}))
    (table,) = read_hw_nas_bench(path, "mine")
    assert table.name == "mine-fbnet"
    ms = content["fbnet"]["raspi4_latency"]
    stages = [(16, 1, 1), (24, 4, 1), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1)]
    for architecture, found in list(
        zip(table.space.decode(table.codes), table.latency_ms["raspi4"], strict=True)
    )[:50]:
        total = ms["ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1"]
        side, before = 32, 16
        for (after, depth, first_stride), unit in zip(stages, architecture.units, strict=True):
            assert len(unit) == depth
            for number, label in enumerate(unit):
                stride = 1 if number else first_stride
                place = f"H{side}_W{side}_Cin{before}_Cout{after}"
                if label == "skip":
                    total += ms[f"Skip_{place}_stride{stride}"]
                else:
                    kernel, expansion, *group = label.split("_")
                    groups = 2 if group else 1
                    total += ms[
                        f"ConvBlock_{place}_exp{expansion[1]}_kernel{kernel[1]}"
                        f"_stride{stride}_group{groups}"
                    ]
                side, before = side // stride, after
        total += ms["ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1"]
        total += ms["AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1"] + ms["FC_Cin1504_Cout100"]
        assert found == pytest.approx(total)
    swapped = {"raspi4_latency": content["fbnet"]["raspi4_energy"], "raspi4_energy": ms}
    path.write_bytes(pickle.dumps({"fbnet": swapped}))
    (other,) = read_hw_nas_bench(path)
    np.testing.assert_array_equal(other.energy_mj["raspi4"], table.latency_ms["raspi4"])
    np.testing.assert_array_equal(other.latency_ms["raspi4"], table.energy_mj["raspi4"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "not a file of HW-NAS-Bench"),
        ({}, "no latencies of nasbench201 or fbnet"),
        ({"nasbench201": {"cifar10": {}}}, "it lacks 'config'"),
        ({"nasbench201": {"cifar10": {"config": [{"arch_str": "x"}]}}}, "needs 22 blocks"),
        (
            {"nasbench201": {"c": {"config": [{"arch_str": CELLS[0]}], "a_latency": [1, 2]}}},
            "'a' for 1 cells",
        ),
        (
            {"nasbench201": {"c": {"config": [{"arch_str": CELLS[0]}], "a_energy": [1, 2]}}},
            "energies of 'a' for 1 cells",
        ),
        ({"fbnet": {"raspi4_latency": {}}}, "it lacks 'ConvNorm_H32"),
    ],
)
def test_another_pickle_is_one_line(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "hw.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError) as caught:
        read_hw_nas_bench(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="there is no"):
        read_hw_nas_bench(tmp_path / "none.pickle")


# Hostile files


class Calls:
    """Pickles as a call of something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self._parts = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._parts if self._parts[2] is not None else self._parts[:2]


def hostile(proof: Path) -> dict[str, Any]:
    """What makes a file, or memory out of bytes, where a reader lets it."""
    forged = bytes(8)
    return {
        "system": Calls(os.system, f"touch {proof}"),
        "open": Calls(open, str(proof), "w"),
        "eval": Calls(eval, f"open({str(proof)!r}, 'w')"),
        "getattr": Calls(getattr, "a", "upper"),
        "ndarray": Calls(np.ndarray, (1,), "O", forged),
        "dtype": Calls(np.dtype, "O"),
        "scalar": Calls(np._core.multiarray.scalar, np.dtype("O"), forged),
        "objects": np.array([{}], dtype=object),
        "text": np.array(["a"]),
        "size": Calls(np._core.numeric._frombuffer, forged, np.dtype("f8"), (-1, -1), "C"),
        "missing": Calls(np._core.numeric._frombuffer, forged, np.dtype("f8"), (10**9,), "C"),
        "module": Calls(torch.hub.load, "a", "b"),
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_hostile_files_run_nothing(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "it ran"
    payload = hostile(proof)[name]
    plain, zipped, old = (tmp_path / f"{ending}" for ending in ("p.pickle", "zip.pt", "old.pt"))
    plain.write_bytes(pickle.dumps({"fbnet": payload}))
    torch.save(payload, zipped)
    torch.save(payload, old, _use_new_zipfile_serialization=False)
    for load, path in ((load_pickle, plain), (load_torch, zipped), (load_torch, old)):
        with pytest.raises(PlainPickleError):
            load(path)
    with pytest.raises(DatasetError):
        read_hw_nas_bench(plain)
    folder = help_folder(tmp_path / "h", arch=[[8] * 22] * 2, **{"latency/evil": payload})
    with pytest.raises(DatasetError, match=r"evil\.pt"):
        read_help(folder, silent)
    assert not proof.exists()


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    pickle.loads(pickle.dumps(hostile(proof)["open"])).close()
    assert proof.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other zip", "huge"])
def test_damaged_files_are_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(list(range(100)), path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        middle = whole.index(b"data.pkl") + 200
        path.write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.txt", "x")
            if damage == "huge":
                archive.writestr("a/data.pkl", pickle.dumps(bytes(2**10)) + b"x")
        if damage == "huge":  # says that it is larger than it is
            data = path.read_bytes()
            entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"a/data.pkl"))
            path.write_bytes(data[: entry + 24] + b"\xff\xff\xff\x7f" + data[entry + 28 :])
    with pytest.raises(PlainPickleError) as caught:
        load_torch(path)
    assert "\n" not in str(caught.value)


# What numpy writes


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_arrays_and_ordered_dictionaries(tmp_path: Path, protocol: int) -> None:
    content = OrderedDict(
        whole=7,
        text="a",
        array=np.arange(6.0).reshape(2, 3),
        columns=np.asfortranarray(np.arange(6, dtype="<i2").reshape(2, 3)),
        foreign=np.array([1.5, 2.5], dtype=">f4"),
        none=np.zeros((0, 3)),
        point=np.array(4.5),
        flag=np.array([True, False]),
        scalar=np.float32(0.5),
    )
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_pickle(path)
    assert found.keys() == content.keys()
    for name, value in content.items():
        np.testing.assert_array_equal(found[name], value)
