"""Learning curves as a picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss, accuracy and learning rate over the steps, as a PNG.

    Args:
      rows: lines of `metrics.jsonl`.
      path: of the picture.
      title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = (
        ("loss", "cross entropy", (("train_loss", "training"), ("val_loss", "validation"))),
        ("top-1", "per cent", (("train_top1", "training"), ("val_top1", "validation"))),
        ("learning rate", "", (("learning_rate", None),)),
    )
    for axes, (name, unit, curves) in zip(figure.subplots(1, 3), panels, strict=True):
        for key, label in curves:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=label, marker="o" if key.startswith("val") else None, markersize=3
                )
        axes.set(title=name, xlabel="step", ylabel=unit)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
