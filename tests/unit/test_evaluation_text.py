from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate import evaluation
from tidegate.evaluation import Report
from tidegate.evaluation_text import label, render


def classified(confusion: list[list[int]], names: list[str]) -> Report:
    """The report of a model with exactly this confusion matrix."""
    pairs = [
        (true, predicted)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        for _ in range(count)
    ]
    logits = torch.eye(len(names))[[predicted for _, predicted in pairs]]
    return evaluation.report("classification", logits, torch.tensor([true for true, _ in pairs]), classes=names)


def test_classification() -> None:
    text = render(classified([[8, 2, 0], [0, 5, 1], [0, 0, 4]], ["cat", "dog", "eel"]), "animals: test split")
    assert text == (
        "animals: test split, 20 rows\n"
        "accuracy 0.8500   precision 0.8381   recall 0.8778   f1 0.8490   auroc 0.9047   loss 0.7014\n"
        "\n"
        "class  rows  precision  recall      f1\n"
        "dog       6     0.7143  0.8333  0.7692\n"
        "cat      10     1.0000  0.8000  0.8889\n"
        "eel       4     0.8000  1.0000  0.8889\n"
        "\n"
        "true cat taken for dog: 2 times\n"
        "true dog taken for eel: once"
    )


def test_regression() -> None:
    report = evaluation.report("regression", torch.tensor([10.0, 30.0]), torch.tensor([20.0, 40.0]))
    assert render(report, "price: test split") == "price: test split, 2 rows\nmse 100.00   mae 10.000   r2 0.0000"


def test_a_perfect_model_has_no_confusions() -> None:
    assert "taken for" not in render(classified([[1, 0], [0, 1]], ["a", "b"]), "t")


def test_a_class_without_rows_has_no_result_and_comes_last() -> None:
    lines = render(classified([[0, 0], [1, 1]], ["absent", "b"]), "t").splitlines()
    table = lines[lines.index("") + 2 :][:2]
    assert [line.split() for line in table] == [
        ["b", "2", "1.0000", "0.5000", "0.6667"],
        ["absent", "0", "-", "-", "-"],
    ]


def test_many_classes_are_cut_to_the_worst() -> None:
    confusion = [[3 if true == predicted else int(true < 10) for predicted in range(40)] for true in range(40)]
    lines = render(classified(confusion, [f"c{number}" for number in range(40)]), "t").splitlines()
    table = lines[4 : lines.index("", 4)]
    assert {line.split()[0] for line in table[:10]} == {f"c{number}" for number in range(10)}
    assert len(table) == 16
    assert table[15] == "... 25 more"
    assert lines[-1] == "... 385 more"


@given(st.text(), st.integers(4, 40))
def test_a_label_is_short_and_printable(name: str, width: int) -> None:
    short = label(name, width)
    assert len(short) <= width
    assert short.isprintable()


def test_class_names_cannot_carry_control_characters_into_a_terminal() -> None:
    text = render(classified([[1, 1], [0, 1]], ["\x1b[31mred", "two\nlines"]), "t")
    assert "\x1b" not in text
    assert "true ?[31mred taken for two lines: once" in text
