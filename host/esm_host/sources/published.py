"""The files that HELP and HW-NAS-Bench publish. Both formats can carry code: none is run."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.dataset.benchmarks import LEAST_MS, LatencyTable, codes_of
from esm_host.errors import DatasetError, UsageError
from esm_models.spaces import load_space

_SUFFIX = "_latency"
_MOST_BYTES = 2**31
_DRAWN = 2000
"""Architectures of FBNet that HW-NAS-Bench's latencies of operators are added up for."""


# HELP


def read_help(folder: Path) -> list[LatencyTable]:
    """A folder of HELP's data sets: ``latency/DEVICE.pt``, lists of milliseconds, beside what says
    of which architectures: ``arch.pt`` (FBNet), ``str_arch2idx.pt`` (NAS-Bench-201) or
    ``ofa_archs.pt``.

    Raises:
        UsageError: it is no such folder.
        DatasetError: a file is damaged, or holds more than numbers and text.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    files = sorted((folder / "latency").glob("*.pt"))
    if not files:
        raise UsageError(f"{folder} has no latency/DEVICE.pt: give a folder of HELP's data")
    space, codes = codes_of(_help_architectures(folder))
    latency_ms = {}
    for file in files:
        values = np.asarray(_torch(file), dtype=object)
        if values.ndim == 1 and len(values) == len(codes):
            latency_ms[file.stem] = _present(values)
    if not latency_ms:
        raise DatasetError(f"no file in {folder / 'latency'} has {len(codes)} latencies")
    return [LatencyTable(f"help-{space.name}", space, codes, latency_ms, {})]


def _help_architectures(folder: Path) -> pd.DataFrame:
    if (folder / "ofa_archs.pt").exists():
        rows = _torch(folder / "ofa_archs.pt")["arch"]
        columns = {"kernel": "ks", "expand": "e", "depth": "d"}
        frame = pd.DataFrame(
            {name: ["_".join(map(str, row[key])) for row in rows] for name, key in columns.items()}
        )
        frame["resolution"] = [int(np.ravel(row["r"])[0]) for row in rows]
        return frame
    if (folder / "str_arch2idx.pt").exists():
        index = _torch(folder / "str_arch2idx.pt")
        if isinstance(index, str):
            index = ast.literal_eval(index)
        return pd.DataFrame({"arch": sorted(index, key=index.__getitem__)})
    if (folder / "arch.pt").exists():
        rows = _torch(folder / "arch.pt")
        return pd.DataFrame({"arch": ["_".join(map(str, row)) for row in rows]})
    raise UsageError(f"{folder} has none of arch.pt, str_arch2idx.pt and ofa_archs.pt")


def _torch(path: Path) -> Any:
    """Numbers and text out of a file of torch's, never code."""
    import torch

    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        text = str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read as numbers and text ({text})") from error


# HW-NAS-Bench


class _Plain(pickle.Unpickler):
    """Numbers, text, lists and dictionaries; arrays of numbers as numpy writes them."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
        for name in ("_reconstruct", "scalar", "ndarray", "dtype")
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_hw_nas_bench(path: Path) -> list[LatencyTable]:
    """The pickle of HW-NAS-Bench: a table of NAS-Bench-201 per data set, and one of FBNet.

    Of FBNet it has latencies of operators, which are added up for 2,000 architectures.

    Raises:
        UsageError: there is no such file.
        DatasetError: it is something else, damaged, or holds more than numbers and text.
    """
    if not path.is_file():
        raise UsageError(f"there is no {path}")
    try:
        with path.open("rb") as file:
            content = _Plain(file).load()
        tables = [
            _cells(f"hw-nas-bench-{name}", entry)
            for name, entry in content.get("nasbench201", {}).items()
        ]
        if "fbnet" in content:
            tables.append(_blocks(content["fbnet"]))
    except Exception as error:  # a damaged pickle raises anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path} is no file of HW-NAS-Bench ({text})") from error
    if not tables:
        raise DatasetError(f"{path} holds neither nasbench201 nor fbnet")
    return tables


def _cells(name: str, entry: Mapping[str, Any]) -> LatencyTable:
    arch = [config["arch_str"] for config in entry["config"]]
    space, codes = codes_of(pd.DataFrame({"arch": arch}))
    latency_ms = {
        key.removesuffix(_SUFFIX): _present(values)
        for key, values in entry.items()
        if key.endswith(_SUFFIX) and len(values) == len(codes)
    }
    return LatencyTable(name, space, codes, latency_ms, {})


def _blocks(entry: Mapping[str, Mapping[str, float]]) -> LatencyTable:
    space = load_space("fbnet")
    options = np.random.default_rng(0).integers(0, len(space.options), (_DRAWN, *space.code_shape))
    codes = np.full(options.shape, -1, dtype=np.int16)
    for unit, (depth,) in enumerate(space.depths):
        codes[:, unit, :depth] = options[:, unit, :depth]
    # Layer by layer: the names of its options' operators, and the column of their codes.
    layers = list(_layers())
    fixed = [
        "ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1",
        "ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1",
        "AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1",
        "FC_Cin1504_Cout100",
    ]
    latency_ms = {}
    for key, operators in entry.items():
        if not key.endswith(_SUFFIX):
            continue
        total = np.full(len(codes), float(sum(operators[name] for name in fixed)))
        for unit, block, names in layers:
            times = np.array([operators[names[option.label]] for option in space.options])
            total += times[codes[:, unit, block]]
        latency_ms[key.removesuffix(_SUFFIX)] = total
    return LatencyTable("hw-nas-bench-fbnet", space, codes, latency_ms, {})


def _layers() -> Iterable[tuple[int, int, dict[str, str]]]:
    """Unit, block, and the operator's name by the option's label, for images of 32 pixels."""
    space = load_space("fbnet")
    side, channels = 32, 16
    widths, strides = (16, 24, 32, 64, 112, 184, 352), (1, 1, 2, 2, 1, 2, 1)
    for unit, ((depth,), width) in enumerate(zip(space.depths, widths, strict=True)):
        for block in range(depth):
            stride = strides[unit] if block == 0 else 1
            shape = f"H{side}_W{side}_Cin{channels}_Cout{width}"
            names = {"skip": f"Skip_{shape}_stride{stride}"}
            for option in space.options:
                if option.label != "skip":
                    names[option.label] = (
                        f"ConvBlock_{shape}_exp{option['expansion']}_kernel{option['kernel']}"
                        f"_stride{stride}_group{option['groups']}"
                    )
            yield unit, block, names
            side, channels = side // stride, width


def _present(values: Any) -> NDArray[np.float64]:
    latency_ms = np.asarray(values, dtype=float)
    return np.where(latency_ms >= LEAST_MS, latency_ms, np.nan)
