"""The story of a run: prepare, train, evaluate, register, publish. Every door (shell, job, Python) leads here."""

from __future__ import annotations

import getpass
import json
import math
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
import yaml

from tidegate import artifact, disk, evaluation, pictures, ray_internals, registry, settings, shared_storage, tracking
from tidegate.card import card
from tidegate.console import Console
from tidegate.data.prepare import prepare
from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError, ConflictError, NotFoundError, StoppedError, TidegateError, TrainingError
from tidegate.evaluation import Report
from tidegate.evaluation_text import render
from tidegate.models.custom import code_of
from tidegate.outcome import REPORT, Outcome
from tidegate.registry import Version
from tidegate.scheduling import arbiter
from tidegate.serving import deploy as serving
from tidegate.serving.status import EndpointStatus
from tidegate.spec import document
from tidegate.spec.run import Spec
from tidegate.told import Carrier, Told
from tidegate.tracking import RunRecord
from tidegate.training import control, enough_frames, trainer, validation
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.fit import Fit
from tidegate.training.progress import News

T = TypeVar("T")
Say = Callable[[str], None]
SPEC, OWN_LOOP = "spec.yaml", "own_loop"
"""In a run's folder: what it is resumed with, and a mark of the runs whose loop only their caller has."""
LOGGED_EVERY_S = 30.0


@dataclass(frozen=True)
class Evaluated:
    """A split's report and what its pictures are drawn from."""

    report: Report
    outputs: torch.Tensor
    targets: torch.Tensor


def new_run(spec: Spec) -> str:
    """A name for a new run of this spec."""
    return f"{spec.name}-{secrets.token_hex(3)}"


def run(
    spec: Spec,
    *,
    name: str,
    say: Say,
    on_news: Callable[[News], None],
    loop: Callable[[Fit], None] | None = None,
) -> Outcome:
    """Carry a run through to the end, from where it was if there is one of that name that did not end.

    What it says is kept in its folder, too. The caller is connected to a cluster. Raises ConflictError when the run has
    finished or another process carries it.
    """
    arbiter.ensure()
    refuse_taken(name)
    shared_storage.check(spec.data.source.path)
    with trainer.opened(spec, name, say) as monitor, Console(Told(_folder(name))) as kept:
        say, on_news = _both(kept.say, say), _both(kept.on_news, on_news)
        recorded = _begin(spec, name, say, loop)
        status = "failed"
        try:
            with disk.explained():
                outcome = _run(spec, name, recorded, say, on_news, loop, monitor)
            status = "finished"
            kept.say(f"finished: {outcome.version.ref}")
            return outcome
        except (KeyboardInterrupt, StoppedError) as error:
            status = "killed"
            kept.say(f"stopped: {error or 'interrupted'}")
            raise
        except Exception as error:
            kept.say(f"failed: {_cause(error)}")
            raise
        finally:
            tracking.finish_run(recorded, status)


def _both(first: Callable[[T], None], second: Callable[[T], None]) -> Callable[[T], None]:
    def tell(what: T) -> None:
        first(what)
        second(what)

    return tell


def _cause(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, TidegateError) else f"{type(cause).__name__}: {cause}"


def refuse_finished(name: str) -> None:
    """Raise ConflictError when a run of that name has finished."""
    known = tracking.find_run(name)
    if known is None or known.status != "finished":
        return
    made = registry.made_by(known)
    raise ConflictError(
        f"run {name} has finished{f' and made {made}' if made else ''}",
        remedy=f"see `tidegate status {name}`, or give the new run another name",
    )


def refuse_taken(name: str) -> None:
    """Raise ConflictError when a run of that name has finished, or a driver carries it."""
    refuse_finished(name)
    control.await_free(name)


def _resumed(spec: Spec, known: RunRecord) -> str:
    """What becomes of a run that did not finish: `going on with run d, which failed, from its checkpoint at step 7`."""
    why = {"failed": "which failed", "killed": "which was stopped"}.get(known.status, "which lost its driver")
    steps = Checkpoints(trainer.checkpoints_of(spec, _folder(known.name))).steps()
    where = f"from its checkpoint at step {steps[-1]}" if steps else "from the beginning: it left no checkpoint"
    return f"going on with run {known.name}, {why}, {where}"


def stored_spec(name: str) -> Spec:
    """The spec that a run was last started with. Raises NotFoundError when there is no such run here."""
    path = _folder(name) / SPEC
    if not path.is_file():
        raise NotFoundError(f"no run {name} in {settings.home()}", remedy="`tidegate runs` lists them")
    return document.read(Spec, path)


def _begin(spec: Spec, name: str, say: Say, loop: Callable[[Fit], None] | None) -> str:
    """Record the run's start, or that it goes on; MLflow's id of it."""
    folder = _folder(name)
    own = folder / OWN_LOOP
    known = tracking.find_run(name)
    if known is not None and own.exists() != (loop is not None):
        remedy = f'tidegate.train(spec, loop=..., name="{name}")' if own.exists() else f"`tidegate resume {name}`"
        whose = "a loop of your own" if own.exists() else "Tidegate's own loop"
        raise ConflictError(f"run {name} was trained with {whose}", remedy=f"go on with it by {remedy}")
    if known is None:
        tags = {"tidegate.model": spec.name, "tidegate.seed": str(spec.seed)}
        recorded = tracking.start_run(name, spec=_text(spec), tags=tags)
    else:
        recorded = known.run_id
        tracking.reopen_run(recorded)
        say(_resumed(spec, known))
    Carrier.here(ray.get_runtime_context().get_job_id(), ray_internals.logs_folder()).write(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if loop is not None:
        own.touch()
    (folder / SPEC).write_text(_text(spec))
    return recorded


def _folder(name: str) -> Path:
    return settings.home() / "runs" / name


def _run(
    spec: Spec,
    name: str,
    recorded: str,
    say: Say,
    on_news: Callable[[News], None],
    loop: Callable[[Fit], None] | None,
    monitor: Any,
) -> Outcome:
    monitor.tell_phase.remote("preparing")
    # Once: what is registered is what was trained, even if a file changes meanwhile.
    code = code_of(spec.model)
    prepared = prepare(spec, say)
    enough_frames.check(spec, prepared)
    say(f"training {spec.model.type} as run {name}")
    final = trainer.fit(spec, prepared, name, on_news=_logged(recorded, on_news), say=say, loop=loop, monitor=monitor)
    _complete(recorded, final.state["history"])
    ray.get(monitor.tell_phase.remote("finishing"))
    weights = final.tensors.get("best") or final.tensors["model"]
    folder = settings.home() / "artifacts" / spec.name / name
    # Of a driver that was lost before the version was registered.
    shutil.rmtree(folder, ignore_errors=True)
    digest = artifact.write(folder, spec, prepared, weights, code)
    say("evaluating on the test split")
    results = _evaluate(folder, digest, prepared, spec)
    _check_answers(results["validation"].report, final.state["history"])
    report = results["test"].report
    lineage = _lineage(spec, name, prepared, final)
    about = folder / artifact.ABOUT
    about.mkdir()
    _describe(about, spec, digest, results, lineage, final.state["history"])
    tracking.log_files(recorded, about)
    metrics = {
        f"{split}.{metric}": value
        for split, result in results.items()
        for metric, value in result.report.metrics.items()
    }
    tracking.log_metrics(recorded, final.step, metrics)
    version = registry.register(spec.name, path=folder, digest=digest, run_id=name, metrics=metrics, lineage=lineage)
    tracking.log_metrics(recorded, final.step, _per_class(report))
    say(render(report, f"{version.ref}, test split"))
    missed = evaluation.check(spec.evaluate.require, metrics)
    endpoint = None if missed else _publish(spec, version, name, say)
    if missed:
        say(f"{version.ref} is not published: {'; '.join(missed)}")
    return Outcome(name, registry.version(version.ref), report, endpoint, missed)


def _check_answers(report: Report, history: Sequence[Mapping[str, float]]) -> None:
    """Raise ArtifactError when the version, as read back, is not what was trained.

    Its validation loss must be one that an epoch ended with: the module, its inputs and their order are then the same.
    """
    found = report.metrics.get("loss", math.nan)
    trained = [record["validation.loss"] for record in history if "validation.loss" in record]
    is_one = any(math.isclose(found, loss, rel_tol=0.05, abs_tol=1e-3) for loss in trained)
    if math.isfinite(found) and trained and not is_one:
        nearest = min(trained, key=lambda loss: abs(loss - found))
        raise ArtifactError(
            f"the model as it was written does not answer as the trained one: its validation loss is {found:.4g}",
            expected=f"that of an epoch (the nearest is {nearest:.4g})",
            remedy="a module whose answers do not follow from its state_dict and its inputs cannot be served",
        )


def _per_class(report: Report) -> dict[str, float]:
    return {f"test.{name}.{item.name}": getattr(item, name) for item in report.per_class for name in ("recall", "f1")}


def _logged(recorded: str, on_news: Callable[[News], None]) -> Callable[[News], None]:
    """Passes the news on and keeps in MLflow every finished epoch, once, and how the run fares, with each epoch and
    every so often. At the next news if MLflow is busy."""
    pending: list[tuple[int, dict[str, float]]] = []
    known = _last_epoch(recorded)
    told_at = time.monotonic()

    def keep(news: News) -> None:
        nonlocal known, told_at
        if any(epoch["epoch"] == 1 for epoch in news.epochs):
            # From the beginning: what an earlier driver told may be of another spec.
            known = 0
        # What an earlier driver told after its last checkpoint is computed again.
        fresh = [epoch for epoch in news.epochs if epoch["epoch"] > known]
        pending.extend(_by_step(fresh))
        if news.progress.total_steps and (fresh or time.monotonic() - told_at >= LOGGED_EVERY_S):
            told_at = time.monotonic()
            pending.append((news.progress.step, news.measured()))
        try:
            on_news(news)
        finally:
            if pending:
                tracking.log_history(recorded, pending)
                pending.clear()

    return keep


def _complete(recorded: str, history: Sequence[Mapping[str, float]]) -> None:
    """Keep the last epochs too, if MLflow was busy when they ended."""
    known = _last_epoch(recorded)
    if missing := [epoch for epoch in history if epoch["epoch"] > known]:
        tracking.log_history(recorded, _by_step(missing))


def _last_epoch(recorded: str) -> float:
    return tracking.run(recorded).metrics.get("epoch", 0)


def _by_step(epochs: Sequence[Mapping[str, float]]) -> list[tuple[int, dict[str, float]]]:
    return [(int(epoch["step"]), {name: v for name, v in epoch.items() if name != "step"}) for epoch in epochs]


def _evaluate(folder: Path, digest: str, prepared: Prepared, spec: Spec) -> dict[str, Evaluated]:
    """Reports on the validation and test splits, computed on the cluster from the artifact as written."""
    evaluate = ray.remote(num_cpus=spec.train.workers.cpu)(_evaluate_split)
    splits = ("validation", "test")
    found: list[Evaluated] = ray.get([evaluate.remote(folder, digest, prepared, spec, split) for split in splits])
    return dict(zip(splits, found, strict=True))


def _evaluate_split(folder: Path, digest: str, prepared: Prepared, spec: Spec, split: Any) -> Evaluated:
    torch.set_num_threads(spec.train.workers.cpu)
    model = artifact.load(folder, digest)
    reader = prepared.reader(split)
    target = prepared.target
    outputs, targets = validation.outputs(model.module, reader, target, worker=0, workers=1, device=torch.device("cpu"))
    report = evaluation.reported(target, outputs, targets)
    return Evaluated(report, *evaluation.in_unit(target, outputs, targets))


def _describe(
    folder: Path,
    spec: Spec,
    digest: str,
    results: Mapping[str, Evaluated],
    lineage: Mapping[str, Any],
    history: list[Any],
) -> None:
    """Card, lineage, report and pictures, beside the artifact."""
    test = results["test"]
    (folder / "README.md").write_text(card(spec, digest, test.report, lineage))
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=1))
    (folder / REPORT).write_text(json.dumps(test.report.to_json(), indent=1))
    pictures.learning_curve(history, folder / "learning_curve.png")
    if test.report.confusion is not None:
        pictures.confusion_matrix(test.report, folder / "confusion_matrix.png")
    elif test.report.task == "regression":
        pictures.predicted_against_true(
            test.outputs.flatten(), test.targets.flatten(), folder / "predicted_against_true.png"
        )


def _lineage(spec: Spec, name: str, prepared: Prepared, final: Checkpoint) -> dict[str, Any]:
    """From which run, spec, data, code and packages a version comes."""
    return {
        "run": name,
        "spec": spec.model_dump(mode="json"),
        "fingerprint": prepared.fingerprint,
        "rows": {split: prepared.num_rows(split) for split in ("train", "validation", "test")},
        "dropped": prepared.manifest["source"]["dropped"],
        "steps": final.step,
        "epochs": len(final.state["history"]),
        "code": _code_revision(),
        "packages": {package: metadata.version(package) for package in ("ray", "torch", "numpy", "pyarrow")},
    }


def _code_revision() -> str:
    """The git revision of the working directory, or the installed release where there is none."""
    git = shutil.which("git")
    if git:
        found = subprocess.run([git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return f"git {found.stdout.strip()}"
    try:
        return f"tidegate {metadata.version('tidegate')}"
    except metadata.PackageNotFoundError:
        return "unknown"


def _publish(spec: Spec, version: Version, name: str, say: Say) -> EndpointStatus | None:
    if spec.publish.alias:
        registry.set_alias(spec.name, spec.publish.alias, version.number, who=user(), why=f"published by run {name}")
        say(f"{spec.name}@{spec.publish.alias} is now {version.ref}")
    if spec.publish.endpoint is None:
        return None
    if isinstance(spec.publish.endpoint, str):
        raise TrainingError("publish.endpoint is still a path", remedy="load the spec with tidegate.load_spec")
    say(f"deploying endpoint {spec.publish.endpoint.name}")
    status = serving.deploy(spec.publish.endpoint, on_wait=say)
    say(f"{status.url} serves {version.name}@{status.version}")
    return status


def user() -> str:
    """Who moves aliases from this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _text(spec: Spec) -> str:
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False)
