"""Trains every shipped spec of real data, three seeds each (or ten folds), and writes docs/results.md.

Every number comes from MLflow's records of the runs; they are kept in docs/results.json, so that one spec at a time can
be measured: `python tests/benchmarks/results.py speech`. A seed decides the split where the spec draws one, and the
initial weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tidegate.data.prepared import Prepared
    from tidegate.loaded import Model
    from tidegate.spec.run import Spec

ROOT = Path(__file__).parents[2]
RECORDS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
FOLDS = 10
Beside = Callable[["Spec", "Prepared", "Model"], dict[str, float]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A spec, and what it is to reach: a number, or another measure of the same run less `margin`."""

    spec: str
    task: str
    measure: str
    wanted: float | str
    reference: str
    at_most: bool = False
    margin: float = 0.0
    data: tuple[str, ...] = ()
    folds: bool = False
    beside: Beside | None = None
    also: tuple[str, ...] = field(default=())
    tried: str = ""

    def least(self, metrics: Mapping[str, float]) -> float:
        return self.wanted if isinstance(self.wanted, float) else metrics[self.wanted] - self.margin


def least_squares(spec: Spec, prepared: Prepared, _: Model) -> dict[str, float]:
    """R2 of ordinary least squares on the same split."""
    (train, known), (test, true) = (flat(prepared, split) for split in ("train", "test"))
    weights = np.linalg.lstsq(np.c_[train, np.ones(len(train))], known, rcond=None)[0]
    residual = true - np.c_[test, np.ones(len(test))] @ weights
    return {"least_squares.r2": float(1 - (residual**2).sum() / ((true - true.mean()) ** 2).sum())}


def logistic(spec: Spec, prepared: Prepared, _: Model) -> dict[str, float]:
    """Accuracy of scikit-learn's logistic regression on the same split."""
    from sklearn.linear_model import LogisticRegression

    (train, known), (test, true) = (flat(prepared, split) for split in ("train", "test"))
    return {"logistic.accuracy": float(LogisticRegression(max_iter=5000).fit(train, known).score(test, true))}


def seasonal(spec: Spec, prepared: Prepared, _: Model) -> dict[str, float]:
    """Mean absolute error of the years one cycle of eleven before, over the windows of the test split."""
    import pyarrow.parquet as pq

    rows = [row for row in pq.read_table(spec.data.source.path).to_pylist() if row["split"] == "test"]
    errors = [abs(row["past"][step - 11] - true) for row in rows for step, true in enumerate(row["future"])]
    return {"seasonal.mae": float(np.mean(errors))} | smoothing(rows)


def smoothing(rows: list[Any]) -> dict[str, float]:
    """The least mean absolute error of statsmodels' exponential smoothing on these windows, where it is installed."""
    try:
        from statsmodels.tsa.holtwinters import ExponentialSmoothing
    except ImportError:
        return {}
    import warnings

    best = float("inf")
    for trend, cycle in ((None, None), ("add", None), (None, "add"), ("add", "add")):
        errors: list[float] = []
        for row in rows:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = ExponentialSmoothing(
                    row["past"], trend=trend, damped_trend=trend is not None, seasonal=cycle, seasonal_periods=11
                ).fit()
            errors += np.abs(fitted.forecast(len(row["future"])) - row["future"]).tolist()
        best = min(best, float(np.mean(errors)))
    return {"smoothing.mae": best}


def accepted(spec: Spec, _: Prepared, model: Model) -> dict[str, float]:
    """Words of the test split that are spoken in none of the ways that the dictionary has."""
    import pyarrow.parquet as pq

    table = pq.read_table(spec.data.source.path)
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    answers = asked(model, "word", [row["word"] for row in rows])
    wrong = sum(answer not in row["accepted"] for answer, row in zip(answers, rows, strict=True))
    return {"test.ser_accepted": wrong / len(rows)}


def unseen(spec: Spec, _: Prepared, model: Model) -> dict[str, float]:
    """Letters of phrases of nothing but words that no training row has, in the voices of the test split."""
    import pyarrow.parquet as pq
    from torchmetrics.functional.text import char_error_rate

    table = pq.read_table(spec.data.source.path.replace("speech.parquet", "speech_unseen.parquet"))
    answers = asked(model, "speech", table["speech"].to_pylist())
    return {"unseen.cer": float(char_error_rate(answers, table["text"].to_pylist()))}


def asked(model: Model, name: str, values: list[Any]) -> list[str]:
    from tidegate.content import objects

    (output,) = (spec.name for spec in model.signature.outputs)
    parts = [objects(values[start : start + 200]) for start in range(0, len(values), 200)]
    return [str(answer) for part in parts for answer in model.predict({name: part})[output].tolist()]


def flat(prepared: Prepared, split: Any) -> tuple[Any, Any]:
    """Inputs side by side, and targets, of a split."""
    from tidegate.data.prepared import TARGET

    arrays = prepared.reader(split).read(np.arange(prepared.num_rows(split)))
    return np.concatenate([arrays[name] for name in prepared.columns.transforms], axis=1), arrays[TARGET]


KIM = "Kim 2014, CNN-rand 76.1, on the same sentences with other labels"
G2P = "g2p-seq2seq on this version of CMUdict without stress"
FAWAZ = "Fawaz et al. 2019"
ROWS = (
    Row("diabetes", "diabetes, regression", "test.r2", "least_squares.r2", "ordinary least squares, same split",
        margin=0.01, data=("diabetes.py",), beside=least_squares),
    Row("digits_linear", "digits, softmax regression", "test.accuracy", "logistic.accuracy",
        "scikit-learn's logistic regression, same split", margin=0.01, data=("digits.py",), beside=logistic),
    Row("digits", "digits", "test.accuracy", 0.98, "scikit-learn's SVC .969, half and half", data=("digits.py",)),
    Row("mnist", "10,000 digits of MNIST, 784-128-10", "test.accuracy", 0.955, "3-NN .9445, LR .9115",
        data=("mnist.py",)),
    Row("mnist_cnn", "the same", "test.accuracy", 0.985, "SVC .970", data=("mnist.py",)),
    Row("mnist_conv_attention", "the same", "test.accuracy", 0.985, "SVC .970", data=("mnist.py",)),
    Row("japanese_vowels", "JapaneseVowels, the archive's split", "test.accuracy", 0.975,
        f"MLP .976, FCN .993, ResNet .992 ({FAWAZ})", data=("series.py",)),
    Row("italy_power_demand", "ItalyPowerDemand, the archive's split", "test.accuracy", 0.955,
        f"MLP .954, FCN .961, ResNet .963 ({FAWAZ})", data=("series.py",)),
    Row("sunspots", "sunspots, eight years ahead, every origin of the last 60", "test.mae", "seasonal.mae",
        "the years eleven before; statsmodels' exponential smoothing", at_most=True, data=("sunspots.py",),
        beside=seasonal, also=("smoothing.mae",)),
    Row("movie_snippets", "movie snippets, ten folds", "test.accuracy", 0.76, KIM, folds=True),
    Row("movie_snippets_minilm", "the same, word embeddings of MiniLM", "test.accuracy", 0.77,
        "Kim 2014, static 81.0; frozen MiniLM and LR .759", folds=True, data=("minilm.py",)),
    Row("pronunciation_gru", "CMUdict, words spoken wrongly", "test.ser", 0.34, f"attention 34 ({G2P})", at_most=True,
        data=("pronunciation.py",), beside=accepted, also=("test.ser_accepted", "test.wer")),
    Row("pronunciation", "the same, by beam search", "test.ser", 0.31, f"transformer about 31 ({G2P})", at_most=True,
        data=("pronunciation.py",), beside=accepted, also=("test.ser_accepted", "test.wer")),
    Row("speech", "synthetic speech, voices held out, letters", "test.cer", 0.10, "none", at_most=True,
        data=("speech.py",), beside=unseen, also=("unseen.cer", "test.wer")),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", choices=[[], *(row.spec for row in ROWS)], help="default: all")
    parser.add_argument("--seeds", type=int, nargs="*", help="default: 0 1 2, and of folds 0 to 9")
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.specs or row.spec in options.specs]
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", OMP_NUM_THREADS="1")
        from tidegate import cluster, connection

        cluster.up(serve_port=18200, auth="disabled")
        try:
            connection.connect()
            for row in chosen:
                provide(row)
                for seed in options.seeds or range(FOLDS if row.folds else 3):
                    keep(row.spec, measured(row, seed))
        finally:
            cluster.down()
    records = json.loads(RECORDS.read_text())
    return 0 if all(has_reached(row, records.get(row.spec, [])) for row in chosen) else 1


def provide(row: Row) -> None:
    folds = [("movie_snippets.py", "--test-fold", str(fold)) for fold in range(FOLDS)] if row.folds else []
    for script, *arguments in [(script,) for script in row.data] + folds:
        command = [sys.executable, str(ROOT / "jobs" / "datasets" / script), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(row: Row, seed: int) -> Record:
    """Train once, without publishing; what MLflow kept of it."""
    import tidegate as tg
    from tidegate import artifact, tracking
    from tidegate.data.prepare import prepare
    from tidegate.spec.run import Publish

    spec = tg.load_spec(ROOT / "jobs" / "specs" / f"{row.spec}.yaml")
    spec = spec.model_copy(update={"seed": seed, "publish": Publish()})
    if row.folds:
        path = spec.data.source.path.replace("fold0", f"fold{seed}")
        source = spec.data.source.model_copy(update={"path": path})
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"source": source})})
    run = tg.train(spec, follow=False)
    version = run.outcome().version
    if row.beside is not None:
        model = artifact.load(Path(version.path), version.digest)
        found = row.beside(spec, prepare(spec, lambda _: None), model)
        tracking.log_metrics(tracking.run(run.name).run_id, 0, found)
    kept = tracking.run(run.name)
    started, ended = (datetime.fromisoformat(str(time)) for time in (kept.started, kept.ended))
    shown = {name: value for name, value in kept.metrics.items() if name.count(".") == 1}
    record = {
        "seed": seed,
        "run": run.name,
        "version": version.digest[:12],
        "ended": kept.ended,
        "seconds": round((ended - started).total_seconds()),
        "workers": json.loads(kept.params.get("train.workers", '{"max": 1}'))["max"],
        "metrics": {name: value for name, value in shown.items() if not name.startswith(("train.", "validation."))},
    }
    print(f"{row.spec} {seed}: {row.measure} {record['metrics'][row.measure]:.4f}, {record['seconds']} s", flush=True)
    return record


def keep(spec: str, record: Record) -> None:
    """Into the file of records, in place of an earlier one of the same seed; and the page anew."""
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    others = [other for other in records.get(spec, []) if other["seed"] != record["seed"]]
    records[spec] = sorted([*others, record], key=lambda one: int(one["seed"]))
    RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    PAGE.write_text(page(records))


def has_reached(row: Row, records: list[Record]) -> bool:
    if not records:
        return False
    mean, wanted = mean_of(records, row.measure), statistics.mean(row.least(record["metrics"]) for record in records)
    return mean <= wanted if row.at_most else mean >= wanted


def page(records: Mapping[str, list[Record]]) -> str:
    """docs/results.md."""
    lines = [
        HEAD,
        "| spec | task | measure | mean ± deviation | wanted | reference | runs | s a run | workers | reached |",
    ]
    lines += ["|" + "---|" * 10, *(line(row, records.get(row.spec, [])) for row in ROWS)]
    return "\n".join([*lines, "", *notes(records), ""])


HEAD = """# Results

What the shipped specs reach on held-out rows, over seeds (of `movie_snippets`, over ten folds). `make results` trains
them and writes this page from MLflow's records ([results.json](results.json)), `tests/benchmarks/results.py SPEC` for
one of them. Seconds are a whole run's, from preparing the data to the registered version, on two CPU cores.
"""


def line(row: Row, records: list[Record]) -> str:
    spec = f"[{row.spec}](../jobs/specs/{row.spec}.yaml)"
    relation = "at most" if row.at_most else "at least"
    if not records:
        wanted = f"{relation} {row.wanted}" if isinstance(row.wanted, float) else row.reference
        return f"| {spec} | {row.task} | {row.measure} | | {wanted} | {row.reference} | 0 | | | not measured yet |"
    wanted = statistics.mean(row.least(record["metrics"]) for record in records)
    seconds = statistics.mean(record["seconds"] for record in records)
    workers = ", ".join(sorted({str(record["workers"]) for record in records}))
    cells = [
        spec,
        row.task,
        row.measure,
        spread(records, row.measure),
        f"{relation} {wanted:.4g}",
        row.reference,
        str(len(records)),
        f"{seconds:.0f}",
        workers,
        "yes" if has_reached(row, records) else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def notes(records: Mapping[str, list[Record]]) -> list[str]:
    """What was measured beside, and what was tried where a row misses."""
    found = []
    for row in ROWS:
        own = records.get(row.spec, [])
        names = [name for name in row.also if own and all(name in record["metrics"] for record in own)]
        parts = [f"{name} {spread(own, name)}" for name in names]
        if own and not has_reached(row, own) and row.tried:
            parts.append(row.tried)
        if parts:
            found.append(f"- {row.spec}: {'; '.join(parts)}.")
    return found


def spread(records: list[Record], name: str) -> str:
    values = [record["metrics"][name] for record in records]
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    digits = 1 if mean >= 10 else 4
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def mean_of(records: list[Record], name: str) -> float:
    return statistics.mean(record["metrics"][name] for record in records)


if __name__ == "__main__":
    sys.exit(main())
