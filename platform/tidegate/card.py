"""The model card: what a person should know before using a version (after Mitchell et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidegate.evaluation import Report
from tidegate.evaluation_text import render
from tidegate.signature import Signature
from tidegate.spec.run import Spec


def card(spec: Spec, digest: str, report: Report, lineage: Mapping[str, Any]) -> str:
    """Markdown."""
    parts = [
        f"# {spec.name}",
        spec.card.description or f"A {spec.model.type} for {spec.task}, trained by Tidegate.",
        _section(
            "Use",
            [("Intended use", spec.card.intended_use or "not stated"), ("Licence", spec.card.licence or "not stated")],
        ),
        _section("Data", _data(spec, lineage)),
        _section("Training", _training(spec, lineage)),
        f"## Test results\n\n```\n{render(report, f'{spec.name}, test split')}\n```",
        _section("Identity", [("Content digest", digest), *_packages(lineage)]),
    ]
    return "\n\n".join(parts) + "\n"


def registered_card(name: str, digest: str, what: str, signature: Signature, lineage: Mapping[str, Any]) -> str:
    """Markdown, for a model that was not trained here."""
    takes, answers = (
        [(tensor.name, f"{tensor.datatype} {list(tensor.shape)}") for tensor in side]
        for side in (signature.inputs, signature.outputs)
    )
    made = {key: value for key, value in lineage.items() if key != "packages"}
    parts = [
        f"# {name}",
        f"{what}. It was registered as it is and not trained by Tidegate, which knows nothing of its data and has not "
        "evaluated it.",
        _section("Takes", takes),
        _section("Answers", answers),
        _section("Made from", [(key, json.dumps(value)) for key, value in made.items()]),
        _section("Identity", [("Content digest", digest), *lineage["packages"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in rows)


def _data(spec: Spec, lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    inputs = ", ".join(f"{name} ({column.type})" for name, column in spec.data.inputs.items())
    rows = ", ".join(f"{count} {split}" for split, count in lineage["rows"].items())
    return [
        ("Source", spec.data.source.path),
        ("Inputs", inputs),
        ("Target", f"{spec.data.target.column} ({spec.data.target.type})"),
        ("Rows", rows),
        ("Rows dropped", str(lineage["dropped"])),
        ("Fingerprint", lineage["fingerprint"]),
    ]


def _training(spec: Spec, lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    train = spec.train
    return [
        ("Run", lineage["run"]),
        ("Model type", spec.model.type),
        ("Steps", f"{lineage['steps']}, {lineage['epochs']} of {train.epochs} epochs"),
        ("Batch", f"{train.global_batch} rows in {train.shards} shards"),
        ("Optimizer", f"{train.optimizer.type}, learning rate {train.optimizer.lr:g}, {train.schedule.type} schedule"),
        ("Seed", str(spec.seed)),
    ]


def _packages(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("Code", lineage["code"]), *((name, version) for name, version in lineage["packages"].items())]
