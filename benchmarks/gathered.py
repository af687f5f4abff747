"""Independent parts of a benchmark, computed in parallel and saved as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd


def gathered(parts: Iterable[Any], jobs: int, label: Sequence[str]) -> pd.DataFrame:
    """Compute all parts and return their rows; print a line after each part.

    Args:
        parts: ``joblib.delayed(compute)(...)``, each of which gives a data frame.
        label: columns that tell a part from the others.
    """
    frames = []
    for frame in joblib.Parallel(n_jobs=jobs, return_as="generator")(parts):
        frames.append(frame)
        print(*(f"{name} {frame[name].iloc[0]}" for name in label), flush=True)
    return pd.concat(frames)


def keep(
    results: pd.DataFrame, folder: Path, name: str, tables: Callable[[pd.DataFrame], str]
) -> None:
    """Write the rows as Parquet and their ``tables`` as Markdown, and print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    results.to_parquet(folder / f"{name}.parquet", index=False)
    text = tables(results)
    (folder / f"{name}.md").write_text(text)
    print(text)
