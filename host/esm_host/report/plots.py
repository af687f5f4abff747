"""The three pictures of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from esm_host.bins import DepthBins
from esm_host.dataset.table import BlockTable, Dataset
from esm_host.evaluation.accuracy import accuracy_percent

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator


def predicted_against_measured(
    path: Path, dataset: Dataset, predicted_ms: NDArray[np.float64], bins: DepthBins
) -> None:
    """Scatter of out-of-fold predictions, coloured by depth bin; the diagonal is perfect."""
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    index = bins.of(dataset.depth)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, bins.count))
    for number in range(bins.count):
        rows = index == number
        depths = bins.depths(number)
        axes.scatter(
            dataset.latency_ms[rows],
            predicted_ms[rows],
            s=12,
            alpha=0.7,
            color=colours[number],
            label=f"{depths[0]}-{depths[-1]} blocks",
        )
    both = np.concatenate([dataset.latency_ms, predicted_ms])
    span = [max(both.min(), 1e-6) * 0.95, both.max() * 1.05]
    axes.plot(span, span, color="0.4", linewidth=1, zorder=0)
    axes.set(
        xlabel="measured latency (ms)",
        ylabel="predicted latency (ms), out of fold",
        title=f"accuracy {accuracy_percent(dataset.latency_ms, predicted_ms):.1f} % on "
        f"{len(dataset)} models, each predicted unseen",
        aspect="equal",
    )
    axes.legend(frameon=False)
    _save(figure, path)


def accuracy_by_round(path: Path, rounds: Sequence[dict[str, Any]], target_percent: float) -> None:
    """Accuracy of every depth bin after each round, against the number of measured models."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    measured = [entry["measured_models"] for entry in rounds]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(rounds[0]["bins"])))
    for number, colour in enumerate(colours):
        entries = [entry["bins"][number] for entry in rounds]
        accuracy = [
            np.nan if e["accuracy_percent"] is None else e["accuracy_percent"] for e in entries
        ]
        label = f"{entries[0]['depth_min']}-{entries[0]['depth_max']} blocks"
        axes.plot(measured, accuracy, marker="o", color=colour, label=label)
    overall = [entry["accuracy_percent"] for entry in rounds]
    axes.plot(measured, overall, color="black", linestyle=":", marker=".", label="overall")
    axes.axhline(target_percent, color="tab:red", linewidth=1, label=f"target {target_percent:g} %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="measured models", ylabel="accuracy (%)", title="accuracy of each depth bin by round"
    )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def reference_stability(path: Path, table: BlockTable, tolerance_percent: float) -> None:
    """References over the campaign: the pace that they share, and how far each strays from it."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    number = np.arange(1, len(table.blocks) + 1)
    upper.plot(number, 100 * (table.quality.factors - 1), color="black", marker=".")
    upper.axhline(0, color="0.8", zorder=0)
    upper.set(ylabel="device slower than usual (%)", title="pace of the device, by block")
    lower.axhspan(0, tolerance_percent, color="tab:green", alpha=0.12, label="tolerated")
    for reference, deviations in enumerate(100 * table.quality.deviations.T, start=1):
        lower.plot(number, deviations, ".", label=f"reference {reference}")
    failed = [i for i, block in enumerate(table.blocks, start=1) if block.passed is False]
    for block in failed:
        lower.axvline(block, color="tab:red", alpha=0.25, linewidth=3, zorder=0)
    title = "what is left of each reference's deviation"
    lower.set(
        xlabel="block",
        ylabel="deviation (%)",
        title=title + (f" (red: failed, {len(failed)} of {len(table.blocks)})" if failed else ""),
        ylim=(0, None),
    )
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
