"""Pictures of a training and its result, as PNG files: confusion matrix, learning curve, predicted against true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.evaluation_text import label
from tidegate.metrics import HIGHER_IS_BETTER, text

if TYPE_CHECKING:
    from torch import Tensor

    from tidegate.evaluation import Report
    from tidegate.scheduling.timeline import Sample

DPI = 160
NUMBERS_UP_TO = 20
"""Classes up to which the cells of a confusion matrix hold their counts."""
MAX_SIDE = 11.0
"""Inches."""
LABELS_UP_TO = 100
"""Class names an axis shows; of more classes every second, third ... is named."""
POINTS_UP_TO = 5000
"""Rows drawn as points; more are drawn as the density of a hexagonal grid."""

INK, GREY, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f5a96", "#c8641e"
LINES = ((BLUE, "-"), (ORANGE, "--"), ("#3a8a5c", "-."), ("#8a4f9e", ":"), ("#7a6a2f", (0, (6, 1))))
"""Colour and dashes: lines that coincide, such as accuracy and F1, both stay visible, in grey print too."""


def confusion_matrix(report: Report, path: Path) -> None:
    """Rows are true classes, columns predicted ones; the colour is the share of the true class's rows."""
    counts = np.asarray(report.confusion, dtype=np.int64)
    names = [label(name, 18) for name in report.classes]
    side = min(MAX_SIDE, max(2.4, 0.42 * len(names)))
    figure = _figure(side + 1.6, side + 1.2)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=_root_scale(), interpolation="nearest")
    _class_ticks(axes, names, side)
    _separators(axes, len(names))
    if len(names) <= NUMBERS_UP_TO:
        _cell_counts(axes, counts, shares)
    _share_bar(figure, axes, image)
    _title(axes, f"accuracy {text(report.metrics['accuracy'])}, {report.rows} rows")
    _save(figure, path)


def learning_curve(history: Sequence[dict[str, float]], path: Path) -> None:
    """Loss and validation metrics over the epochs.

    `history` has one entry an epoch: `epoch` and any of `train.loss`, `validation.loss`, `validation.<metric>`. An
    entry may lack a metric: its line has a gap there.
    """
    panels = _panels(history)
    figure = _figure(1.0 + 3.6 * len(panels), 3.1)
    for axes, (heading, keys) in zip(_row(figure, len(panels)), panels, strict=True):
        _curves(axes, history, keys)
        _title(axes, heading)
    _save(figure, path)


def predicted_against_true(outputs: Tensor, targets: Tensor, path: Path) -> None:
    """One point a row, both axes in the target's unit; the line is a perfect prediction. Both tensors are [rows]."""
    true, predicted = targets.detach().cpu().double().numpy(), outputs.detach().cpu().double().numpy()
    limits = _limits(np.concatenate([true, predicted]))
    figure = _figure(4.2, 4.0)
    axes = figure.add_subplot()
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=3)
    if len(true) > POINTS_UP_TO:
        _density(figure, axes, true, predicted, limits)
    else:
        axes.scatter(true, predicted, s=12, color=BLUE, alpha=0.55, linewidths=0, zorder=2)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true", ylabel="predicted")
    _restrain(axes)
    _title(axes, f"mean absolute error {text(float(np.abs(predicted - true).mean()))}, {len(true)} rows")
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)


def _row(figure: Any, count: int) -> list[Any]:
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw={"wspace": 0.08})[0])


def devices(timeline: Sequence[Sample], device: str, path: Path) -> None:
    """Devices over time, one above the other: with serving, training, on their way, with others, free."""
    figure = _figure(8.0, 3.1)
    axes = figure.add_subplot()
    began = timeline[0].at if timeline else 0.0
    seconds = [sample.at - began for sample in timeline]
    parts = {"serving": ORANGE, "training": BLUE, "changing": "#c9d3df", "others": GREY, "free": "#f3f3f3"}
    layers = [
        [s.serving for s in timeline],
        [s.training for s in timeline],
        [s.changing for s in timeline],
        [s.other for s in timeline],
        [s.free for s in timeline],
    ]
    axes.stackplot(seconds, layers, labels=list(parts), colors=list(parts.values()))
    axes.set_xlabel("seconds", fontsize=9, color=INK)
    axes.set_ylabel(f"{device}s", fontsize=9, color=INK)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, frameon=False, fontsize=8, labelcolor=INK)
    axes.margins(x=0)
    _restrain(axes)
    _save(figure, path)


def _title(axes: Any, heading: str) -> None:
    axes.set_title(heading, loc="left", fontsize=9, color=INK)


def _restrain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    axes.xaxis.label.set(fontsize=9, color=INK)
    axes.yaxis.label.set(fontsize=9, color=INK)


def _colour_bar(figure: Any, axes: Any, image: Any, meaning: str) -> Any:
    # An inset is as high as the axes themselves, which `aspect="equal"` shrinks only when drawn.
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.035, 1.0)))
    bar.set_label(meaning, fontsize=8, color=INK)
    bar.ax.tick_params(which="both", labelsize=7, color=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
    return bar


# Confusion matrix


def _root_scale() -> Any:
    from matplotlib.colors import PowerNorm

    # A linear scale would leave a confusion of a few percent as white as none.
    return PowerNorm(0.5, vmin=0.0, vmax=1.0)


def _class_ticks(axes: Any, names: list[str], side: float) -> None:
    step = math.ceil(len(names) / LABELS_UP_TO)
    places = range(0, len(names), step)
    size = min(8.0, 0.7 * 72 * side / len(places))
    # parse_math: a class named "$5" is a name, not a formula.
    shown = {"labels": [names[place] for place in places], "fontsize": size, "parse_math": False}
    upright = len(names) <= 12 and max(len(name) for name in names) <= 4
    axes.set_xticks(places, rotation=0 if upright else 90, **shown)
    axes.set_yticks(places, **shown)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xlabel("predicted", fontsize=9, color=INK)
    axes.set_ylabel("true", fontsize=9, color=INK)


def _separators(axes: Any, count: int) -> None:
    axes.spines[:].set_visible(False)
    if count > LABELS_UP_TO:
        return
    edges = np.arange(count + 1) - 0.5
    style = {"colors": "#e4e4e4", "linewidth": 0.5 if count <= 40 else 0.2}
    axes.hlines(edges, edges[0], edges[-1], **style)
    axes.vlines(edges, edges[0], edges[-1], **style)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]))


def _cell_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 8.0 if counts.max() < 1000 else 6.0
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.3 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)


def _share_bar(figure: Any, axes: Any, image: Any) -> None:
    bar = _colour_bar(figure, axes, image, "share of the true class")
    bar.set_ticks([0.0, 0.05, 0.25, 0.5, 1.0], labels=["0", "5%", "25%", "50%", "100%"])


# Learning curve


def _panels(history: Sequence[dict[str, float]]) -> list[tuple[str, list[str]]]:
    """Heading and keys of each panel: losses together, ratios together, anything with a unit by itself."""
    keys = list(dict.fromkeys(key for entry in history for key in entry if key != "epoch"))
    losses = [key for key in keys if key.endswith(".loss")]
    measures = [key for key in keys if key not in losses]
    ratios = [key for key in measures if HIGHER_IS_BETTER.get(key.split(".")[-1], False)]
    units = [key for key in measures if key not in ratios and not key.endswith(".mse")]
    groups = [losses, ratios, *([key] for key in units)]
    return [(_heading(group), group) for group in groups if group]


def _heading(keys: list[str]) -> str:
    if len(keys) == 1:
        return keys[0].replace(".", " ")
    return "loss" if keys[0].endswith(".loss") else "validation metrics"


def _curves(axes: Any, history: Sequence[dict[str, float]], keys: list[str]) -> None:
    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(history) <= 10 else ""
    for key, (colour, dashes) in zip(keys, LINES, strict=False):
        values = [entry.get(key, math.nan) for entry in history]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "linewidth": 1.4, "markersize": 3}
        axes.plot(epochs, values, label=_line_name(key, keys), **style)
    _epoch_axis(axes, epochs)
    axes.grid(axis="y", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    _restrain(axes)
    if len(keys) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _epoch_axis(axes: Any, epochs: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _line_name(key: str, keys: list[str]) -> str:
    split, _, name = key.partition(".")
    return split if all(other.endswith(f".{name}") for other in keys) else name


# Predicted against true


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _density(figure: Any, axes: Any, true: np.ndarray, predicted: np.ndarray, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import StrMethodFormatter

    grid = axes.hexbin(
        true, predicted, gridsize=60, extent=(*limits, *limits), bins="log", mincnt=1, cmap="Blues", linewidths=0
    )
    bar = _colour_bar(figure, axes, grid, "rows in a cell")
    bar.formatter = StrMethodFormatter("{x:g}")
    bar.update_ticks()
