"""Readers of the published files of HELP and HW-NAS-Bench."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.dataset.benchmarks import LatencyTable, codes_of, plausible_latencies, positive
from esm_host.errors import DatasetError, UsageError
from esm_host.sources.plain_pickle import load_pickle, load_torch
from esm_models.space import Codes
from esm_models.spaces import load_space

HELP = "help"
HW_NAS_BENCH = "hw-nas-bench"

_LATENCY, _ENERGY = "_latency", "_energy"
"""Suffixes of names of latencies, ms, and of energies, mJ, after the device."""
_DRAWN = 2000
"""Number of random FBNet architectures with the sums of HW-NAS-Bench's operators."""


# HELP


def read_help(folder: Path, warn: Callable[[str], None], name: str | None = None) -> LatencyTable:
    """Read a folder of HELP's data (https://github.com/HayeonLee/HELP).

    Latencies are in ``latency/DEVICE.pt``, lists of milliseconds. The architectures are in
    ``arch.pt`` (FBNet), ``str_arch2idx.pt`` (NAS-Bench-201) or ``ofa_archs.pt`` (Once-for-all).

    Args:
        folder: The folder.
        warn: Callback for devices with latencies of other architectures, which are left out.
        name: Name of the table; None uses ``help-SPACE``.

    Raises:
        UsageError: the folder holds no such data.
        DatasetError: a file is damaged, or holds more than numbers and text.
    """
    files = sorted((folder / "latency").glob("*.pt"))
    if not files:
        raise UsageError(f"{folder} has no latency/DEVICE.pt: give a folder of HELP's data")
    try:
        space, codes = codes_of(help_architectures(folder))
    except (TypeError, ValueError, LookupError, SyntaxError, RecursionError) as error:
        raise DatasetError(f"{folder} holds no valid architectures of HELP ({error})") from error
    latency_ms = {}
    for file in files:
        try:
            values = np.asarray(load_torch(file), dtype=float)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{file} is not a list of milliseconds ({error})") from error
        if values.shape == (len(codes),):
            latency_ms[file.stem] = plausible_latencies(values)
        else:
            shape = " x ".join(map(str, values.shape))
            warn(f"{file.stem} has {shape} latencies for {len(codes)} architectures: left out")
    if not latency_ms:
        raise DatasetError(f"no file in {folder / 'latency'} has {len(codes)} latencies")
    return LatencyTable(name or f"{HELP}-{space.name}", space, codes, latency_ms, {})


def help_architectures(folder: Path) -> pd.DataFrame:
    """Return the architectures of a folder of HELP's data as columns.

    The columns are those of :func:`esm_host.dataset.benchmarks.codes_of`.

    Raises:
        UsageError: the folder holds no architectures.
        TypeError, ValueError, LookupError, SyntaxError, RecursionError: a file is damaged.
    """
    if (folder / "ofa_archs.pt").exists():
        rows = load_torch(folder / "ofa_archs.pt")["arch"]
        columns = {"kernel": "ks", "expand": "e", "depth": "d"}
        frame = pd.DataFrame(
            {name: [_joined(r[key]) for r in rows] for name, key in columns.items()}
        )
        frame["resolution"] = [int(np.ravel(row["r"])[0]) for row in rows]
        return frame
    if (folder / "str_arch2idx.pt").exists():
        index = load_torch(folder / "str_arch2idx.pt")
        if isinstance(index, str):
            index = ast.literal_eval(index)
        if sorted(index.values()) != list(range(len(index))):
            raise ValueError("str_arch2idx.pt does not number its cells from 0")
        return pd.DataFrame({"arch": sorted(index, key=index.__getitem__)})
    if (folder / "arch.pt").exists():
        return pd.DataFrame({"arch": [_joined(row) for row in load_torch(folder / "arch.pt")]})
    raise UsageError(f"{folder} has none of arch.pt, str_arch2idx.pt and ofa_archs.pt")


def _joined(numbers: Any) -> str:
    return "_".join(str(int(number)) for number in numbers)


# HW-NAS-Bench


def read_hw_nas_bench(path: Path, name: str | None = None) -> list[LatencyTable]:
    """Read the pickle of HW-NAS-Bench (https://github.com/GATECH-EIC/HW-NAS-Bench).

    Returns one table of NAS-Bench-201 per data set, such as ``NAME-cifar10``, and one of FBNet
    for CIFAR-100, ``NAME-fbnet``. The file holds latencies and energies of operators for FBNet.
    They are added up for 2,000 random architectures.

    Args:
        path: Path of the file.
        name: Prefix of the tables' names; None uses ``hw-nas-bench``.

    Raises:
        UsageError: the file does not exist.
        DatasetError: the file is of another kind, damaged, or holds more than numbers and text.
    """
    name = name or HW_NAS_BENCH
    tables = []
    try:
        content = load_pickle(path)
        for data, entry in content.get("nasbench201", {}).items():
            tables.append(_cells(f"{name}-{data}", entry))
        if "fbnet" in content:
            tables.append(_blocks(f"{name}-fbnet", content["fbnet"]))
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not a file of HW-NAS-Bench ({error})") from error
    except LookupError as error:
        raise DatasetError(f"{path} is not a file of HW-NAS-Bench (it lacks {error})") from error
    if not any(table.latency_ms or table.energy_mj for table in tables):
        raise DatasetError(f"{path} holds no latencies of nasbench201 or fbnet")
    return tables


def _cells(name: str, entry: Mapping[str, Any]) -> LatencyTable:
    configurations = entry["config"]
    arch = [configurations[number]["arch_str"] for number in range(len(configurations))]
    space, codes = codes_of(pd.DataFrame({"arch": arch}))
    latency_ms = {
        key.removesuffix(_LATENCY): plausible_latencies(values)
        for key, values in entry.items()
        if key.endswith(_LATENCY)
    }
    energy_mj = {
        key.removesuffix(_ENERGY): positive(values)
        for key, values in entry.items()
        if key.endswith(_ENERGY)
    }
    for what, known in (("latencies", latency_ms), ("energies", energy_mj)):
        for device, values in known.items():
            if values.shape != (len(codes),):
                raise ValueError(f"{values.shape} {what} of '{device}' for {len(codes)} cells")
    return LatencyTable(name, space, codes, latency_ms, {}, energy_mj)


def _blocks(name: str, entry: Mapping[str, Mapping[str, float]]) -> LatencyTable:
    space = load_space("fbnet")
    drawn = np.random.default_rng(0).integers(0, len(space.options), (_DRAWN, *space.code_shape))
    codes = np.full(drawn.shape, -1, dtype=np.int16)
    for unit, (depth,) in enumerate(space.depths):
        codes[:, unit, :depth] = drawn[:, unit, :depth]
    latency_ms, energy_mj = (
        {
            key.removesuffix(suffix): checked(_added(operators, codes))
            for key, operators in entry.items()
            if key.endswith(suffix)
        }
        for suffix, checked in ((_LATENCY, plausible_latencies), (_ENERGY, positive))
    )
    return LatencyTable(name, space, codes, latency_ms, {}, energy_mj)


def _added(operators: Mapping[str, float], codes: Codes) -> NDArray[np.float64]:
    """Return the sums over the operators of networks, ``(n,)``."""
    total = np.full(len(codes), sum(float(operators[fixed]) for fixed in _FIXED))
    for unit, block, names in _layers():
        total += np.array([float(operators[each]) for each in names])[codes[:, unit, block]]
    return total


# Operators that every network has, for images of 32 pixels: stem and head.
_FIXED = (
    "ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1",
    "ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1",
    "AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1",
    "FC_Cin1504_Cout100",
)


def _layers() -> Iterator[tuple[int, int, list[str]]]:
    """Yield unit, block, and the operator names of the block in the order of the codes."""
    space = load_space("fbnet")
    side, channels = 32, 16
    widths, strides = (16, 24, 32, 64, 112, 184, 352), (1, 1, 2, 2, 1, 2, 1)
    for unit, ((depth,), width) in enumerate(zip(space.depths, widths, strict=True)):
        for block in range(depth):
            stride = strides[unit] if block == 0 else 1
            shape = f"H{side}_W{side}_Cin{channels}_Cout{width}"
            yield (
                unit,
                block,
                [
                    f"Skip_{shape}_stride{stride}"
                    if option.label == "skip"
                    else f"ConvBlock_{shape}_exp{option['expansion']}_kernel{option['kernel']}"
                    f"_stride{stride}_group{option['groups']}"
                    for option in space.options
                ],
            )
            side, channels = side // stride, width
