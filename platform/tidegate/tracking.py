"""Runs, their metrics and their files, kept in MLflow.

A run is known by its name, such as "digits-7f3a", and by MLflow's own id
of 32 hex digits; every function takes either.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from tidegate import store
from tidegate.errors import ConflictError, NotFoundError, SpecError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

EXPERIMENT = "tidegate"
MAX_KEY = 250
RUN_TAG = "tidegate.run"
BATCH = 100
"""Parameters or tags MLflow takes at once; it takes ten times as many metrics."""

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RunRecord:
    """One training run. `run_id` is MLflow's, `name` ours; times are ISO-8601 UTC; `metrics` holds the last values."""

    run_id: str
    name: str
    status: str
    started: str
    ended: str | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


def closest(wanted: str, known: Iterable[str]) -> str:
    """The names a message should offer to a person who wrote `wanted`: those alike, or else the first ten."""
    names = list(dict.fromkeys(known))
    return ", ".join(difflib.get_close_matches(wanted, names, n=5) or names[:10])


def utc(milliseconds: int) -> str:
    """MLflow's time as ISO-8601 UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def start_run(name: str, *, spec: str, tags: Mapping[str, str]) -> str:
    """Record the start of run `name` and return MLflow's id. `spec` is YAML or JSON text, kept as a file of the run.

    Raises ConflictError when a run of that name exists.
    """
    if not _RUN_NAME.fullmatch(name):
        raise SpecError(f"run name {name!r}", expected="letters, digits, '.', '_' and '-', at most 127")
    with store.exclusive():
        if find_run(name) is not None:
            raise ConflictError(f"run {name} exists", remedy="give the new run another name")
        run_id = store.attempt(lambda client: _create_run(client, name, tags))
    for batch in _batches(_parameters(spec), BATCH):
        store.attempt(lambda client, batch=batch: client.log_batch(run_id, params=batch))  # type: ignore[misc]
    store.attempt(lambda client: client.log_text(run_id, spec, "spec.yaml"))
    return run_id


def reopen_run(run_id: str) -> None:
    """Record that a run that had ended, or whose driver was lost, goes on."""
    target = _mlflow_id(run_id)
    store.attempt(lambda client: client.update_run(target, "RUNNING"))


def log_metrics(run_id: str, step: int, metrics: Mapping[str, float]) -> None:
    """Add one point to the curve of each metric."""
    log_history(run_id, [(step, metrics)])


def log_history(run_id: str, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Add many points, `(step, metrics)` each, in as few transactions as MLflow allows."""
    store.load_mlflow()
    from mlflow.entities import Metric

    target, now = _mlflow_id(run_id), int(time.time() * 1000)
    points = [Metric(_key(key), float(value), now, step) for step, values in history for key, value in values.items()]
    for batch in _batches(points, BATCH * 10):
        store.attempt(lambda client, batch=batch: client.log_batch(target, metrics=batch))  # type: ignore[misc]


def log_files(run_id: str, folder: Path) -> None:
    """Copy the files of `folder` (pictures, reports) to the run. Raises NotFoundError when it is no folder."""
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}")
    target = _mlflow_id(run_id)
    store.attempt(lambda client: client.log_artifacts(target, str(folder)))


def finish_run(run_id: str, status: str) -> None:
    """Record the end of a run. `status` is finished, failed or killed."""
    if status.lower() not in ("finished", "failed", "killed"):
        raise SpecError(f"run status {status!r}", expected="finished, failed or killed")
    target = _mlflow_id(run_id)
    store.attempt(lambda client: client.set_terminated(target, status.upper()))


def runs() -> list[RunRecord]:
    """All runs, newest first."""
    return store.attempt(lambda client: [_record(run) for run in _search(client, "")])


def run(name_or_id: str) -> RunRecord:
    """The run of that name or MLflow id. Raises NotFoundError."""
    found = find_run(name_or_id)
    if found is None:
        known = closest(name_or_id, (record.name for record in runs()))
        raise NotFoundError(f"no run {name_or_id!r}", expected=f"one of {known}" if known else "", remedy=_NO_RUN)
    return found


def find_run(name_or_id: str) -> RunRecord | None:
    """The run of that name or MLflow id, or None."""
    if _MLFLOW_ID.fullmatch(name_or_id):
        where = f"attributes.run_id = '{name_or_id}'"
    elif _RUN_NAME.fullmatch(name_or_id):
        where = f"tags.`{RUN_TAG}` = '{name_or_id}'"
    else:
        return None
    return store.attempt(lambda client: next((_record(run) for run in _search(client, where)), None))


_NO_RUN = "`tidegate runs` lists them"


def _mlflow_id(name_or_id: str) -> str:
    return name_or_id if _MLFLOW_ID.fullmatch(name_or_id) else run(name_or_id).run_id


def _search(client: MlflowClient, where: str) -> Iterator[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return iter(())
    order = ["attributes.start_time DESC"]
    ids = [experiment.experiment_id]
    return store.pages(client.search_runs, experiment_ids=ids, filter_string=where, order_by=order)


def _record(run: Run) -> RunRecord:
    info, data = run.info, run.data
    return RunRecord(
        run_id=info.run_id,
        name=data.tags.get(RUN_TAG) or info.run_name,
        status=info.status.lower(),
        started=utc(info.start_time),
        ended=utc(info.end_time) if info.end_time else None,
        params=dict(data.params),
        tags={key: value for key, value in data.tags.items() if not key.startswith("mlflow.") and key != RUN_TAG},
        metrics=dict(data.metrics),
    )


def _create_run(client: MlflowClient, name: str, tags: Mapping[str, str]) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    chosen = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, store.runs_folder())
    created = client.create_run(chosen, run_name=name, tags={**tags, RUN_TAG: name})
    return str(created.info.run_id)


def _parameters(spec: str) -> list[Any]:
    """The spec's keys, two levels deep, for MLflow's comparison of runs; what lies deeper is one JSON value."""
    from mlflow.entities import Param

    document = yaml.safe_load(spec)
    flat: dict[str, Any] = {}
    for key, value in document.items() if isinstance(document, dict) else ():
        flat.update(
            {f"{key}.{inner}": deep for inner, deep in value.items()} if isinstance(value, dict) else {key: value}
        )
    return [
        Param(_key(key), value if isinstance(value, str) else json.dumps(value, default=str))
        for key, value in flat.items()
    ]


def _key(text: str) -> str:
    """MLflow takes only these characters; metrics of a class carry its label, which may hold any."""
    return (re.sub(r"[^\w. -]", "_", text).strip(" .") or "_")[:MAX_KEY]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
