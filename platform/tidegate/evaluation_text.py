"""A report as plain text, for a terminal and for a job's log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.metrics import text

if TYPE_CHECKING:
    from tidegate.evaluation import ClassReport, Report

CLASSES_SHOWN = 15
CONFUSIONS_SHOWN = 5
MISTAKES_SHOWN = 5


def render(report: Report, title: str) -> str:
    """Headline metrics; for classification also the weakest classes and the most frequent confusions, and for
    sequences some that were wrong.

    Lines end in "\\n" except the last. No colours or control characters, whatever the class names hold.
    """
    parts = [[f"{title}, {report.rows} {'row' if report.rows == 1 else 'rows'}", _headline(report)]]
    if report.task == "classification":
        parts += [_class_table(report.per_class), _confusions(report)]
    if report.task == "sequence":
        parts += [_mistakes(report)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def label(name: str, width: int = 24) -> str:
    """A class name that fits a table or a picture: one line, printable, at most `width` characters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in " ".join(name.split()))
    return printable if len(printable) <= width else printable[: width - 3] + "..."


def _headline(report: Report) -> str:
    # A regression's loss is its mse.
    shown = [name for name in report.metrics if not (report.task == "regression" and name == "loss")]
    return "   ".join(f"{name} {text(report.metrics[name])}" for name in shown)


def _class_table(classes: list[ClassReport]) -> list[str]:
    worst_first = sorted(classes, key=lambda item: (item.rows == 0, item.f1))
    rows = [("class", "rows", "precision", "recall", "f1")] + [_cells(item) for item in worst_first[:CLASSES_SHOWN]]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [_aligned(row, widths) for row in rows]
    if len(classes) > CLASSES_SHOWN:
        lines.append(f"... {len(classes) - CLASSES_SHOWN} more")
    return lines


def _cells(item: ClassReport) -> tuple[str, ...]:
    # Without a row of its own a class has no result, good or bad.
    ratios = [f"{value:.4f}" if item.rows else "-" for value in (item.precision, item.recall, item.f1)]
    return (label(item.name), str(item.rows), *ratios)


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *numbers])


def _confusions(report: Report) -> list[str]:
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(report.confusion or [])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    names = [label(name) for name in report.classes]
    lines = [f"true {names[true]} taken for {names[predicted]}: {_times(n)}" for n, true, predicted in pairs]
    more = len(lines) - CONFUSIONS_SHOWN
    return lines[:CONFUSIONS_SHOWN] + ([f"... {more} more"] if more > 0 else [])


def _mistakes(report: Report) -> list[str]:
    shown = report.mistakes[:MISTAKES_SHOWN]
    return [f"{label(item.expected, 60)} answered as {label(item.answered, 60) or 'nothing'}" for item in shown]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
