"""A whole batch: planned once, computed by a pool of workers, told of when it is whole. Done parts are kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet
import ray
import ray.data
from filelock import FileLock, Timeout

from tidegate import connection, errors, registry, tables
from tidegate.batch import plan
from tidegate.batch.part import PLAN, PartWriter, Work, column_type, is_whole
from tidegate.batch.plan import Part
from tidegate.data.sources import SourceFile, shown
from tidegate.errors import ArtifactError, ClusterError, ConflictError, DataError, SpecError, TidegateError
from tidegate.model_inputs import PIXEL_MAX, InputReader
from tidegate.registry import Version
from tidegate.rows import Rows, of_source
from tidegate.signature import Signature
from tidegate.table_writer import unified

MANIFEST, LOCK, REASON, MODEL = "manifest.json", ".lock", "refused", "model.json"
PART_ROWS = 20_000
COUNTING_TASKS = 200
Say = Callable[[str], None]
OnProgress = Callable[[int, int], None]
"""Told of the rows that are done and of all rows."""


@dataclass(frozen=True)
class Options:
    """What decides the answers, besides model and source."""

    batch_rows: int = 64
    part_rows: int = PART_ROWS
    invalid: Literal["stop", "skip"] = "stop"
    white: float = PIXEL_MAX


@dataclass(frozen=True)
class Batch:
    """A batch that is done. `parts` are Parquet files, in the order of the rows; `refused` rows have no answers."""

    folder: Path
    model: str
    parts: tuple[Path, ...]
    rows: int
    refused: int


def predict(
    model: str | Version,
    source: str | Path,
    output: str | Path,
    options: Options,
    *,
    workers: int,
    gpu: float,
    say: Say,
    on_progress: OnProgress,
) -> Batch:
    """See `tidegate.predict_batch`. The process is a driver of a cluster."""
    version = registry.version(model) if isinstance(model, str) else model
    _check(workers, gpu, options)
    rows = of_source(_absolute(str(source)))
    folder = Path(output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            return _Run(version, rows, folder, options, say, on_progress).run(workers, gpu)
    except Timeout:
        raise ConflictError(f"another run writes into {folder}", remedy="wait for it, or name another folder") from None


def _check(workers: int, gpu: float, options: Options) -> None:
    if workers < 1 or gpu < 0 or options.batch_rows < 1 or options.part_rows < 1:
        raise SpecError("workers, batch_rows and part_rows are at least 1, gpu at least 0")
    if gpu and not ray.cluster_resources().get("GPU"):
        raise ClusterError("the cluster has no GPU", remedy="leave out --gpu")


def _absolute(source: str) -> str:
    return source if "://" in source else str(Path(source).absolute())


class _Run:
    def __init__(
        self, version: Version, rows: Rows, folder: Path, options: Options, say: Say, on_progress: OnProgress
    ) -> None:
        self._version, self._rows, self._folder, self._options = version, rows, folder, options
        self._say, self._on_progress = say, on_progress
        self._signature = _signature(version)
        decides = {"model": version.digest, "source": rows.source.path, **options.__dict__}
        self._mark = plan.fingerprint(rows.files, decides)

    def run(self, workers: int, gpu: float) -> Batch:
        connection.quiet()
        # Of workers that were killed in the middle.
        for left in self._folder.glob(".part-*.partial"):
            left.unlink(missing_ok=True)
        document = self._planned()
        planned = plan.from_json(document["parts"])
        with ThreadPoolExecutor(8) as pool:
            whole = list(pool.map(lambda part: is_whole(self._folder / part.name, part.rows), planned))
        total, done = (
            sum(part.rows for part in planned),
            sum(p.rows for p, ok in zip(planned, whole, strict=True) if ok),
        )
        self._say(
            f"{self._version.ref} on {total} rows of {shown(self._rows.source.path)} in {len(planned)} parts"
            + (f", {sum(whole)} of them written before" if any(whole) else "")
        )
        missing = [part for part, is_done in zip(planned, whole, strict=True) if not is_done]
        if missing:
            (self._folder / MANIFEST).unlink(missing_ok=True)
            for record in self._computed(missing, self._work(document, gpu), workers, gpu):
                done += record["rows"]
                self._on_progress(done, total)
        return self._finished(planned, document["reason"])

    def _planned(self) -> dict[str, Any]:
        """The plan that was made before for the same source, model and options, else a new one."""
        path = self._folder / PLAN
        if path.exists():
            document: dict[str, Any] = json.loads(path.read_text())
            if document["mark"] == self._mark:
                return document
            raise ConflictError(
                f"{self._folder} holds answers of {document['model']} to another source, or with other options",
                remedy="name another folder, or delete this one",
            )
        if next(self._folder.glob("*.parquet"), None):
            raise ConflictError(f"{self._folder} holds other Parquet files", remedy="name another folder")
        document = self._document()
        _write_json(path, document)
        return document

    def _document(self) -> dict[str, Any]:
        rows, options = self._rows, self._options
        # Before anything is counted: a column that is missing shows at once.
        InputReader(self._signature, rows.columns, shown(rows.source.path))
        if rows.content:
            sizes = [file.size for file in rows.files]
            parts = plan.parts_of_contents(sizes, options.part_rows, self._mark)
            schema = pa.schema([(name, pa.string()) for name in rows.columns if name != rows.content])
        else:
            counts, schema = self._counted()
            parts = plan.parts(counts, options.part_rows, self._mark)
        if not parts:
            raise DataError(f"the source {shown(rows.source.path)} has no rows", remedy="give it some, or name another")
        names = tables.answer_names(schema.names, [spec.name for spec in self._signature.outputs])
        for spec in self._signature.outputs:
            schema = schema.append(pa.field(names[spec.name], column_type(spec.datatype, spec.shape)))
        reason = _free(REASON, schema.names) if options.invalid == "skip" else ""
        if reason:
            schema = schema.append(pa.field(reason, pa.string()))
        return {
            "mark": self._mark,
            "model": self._version.ref,
            "source": rows.source.path,
            "outputs": names,
            "reason": reason,
            "schema": _text_of(schema),
            "parts": plan.to_json(parts),
        }

    def _counted(self) -> tuple[list[plan.Counted], pa.Schema]:
        """How many rows each file has and which types all of them fit."""
        rows = replace(self._rows, files=())

        def count_rows(row: dict[str, Any]) -> dict[str, Any]:
            file = SourceFile(**json.loads(row["file"]))
            try:
                found, schema = plan.counted(rows, file)
                record: dict[str, Any] = {"count": found, "schema": _text_of(schema)}
            except TidegateError as error:
                record = _told(error)
            return {"record": json.dumps({"index": row["index"], **record})}

        items = [{"index": index, "file": json.dumps(asdict(file))} for index, file in enumerate(self._rows.files)]
        dataset = ray.data.from_items(items, override_num_blocks=min(len(items), COUNTING_TASKS)).map(count_rows)
        records = sorted(_records(dataset), key=lambda record: int(record["index"]))
        schema = pa.schema([])
        for record in records:
            schema = unified(schema, _schema_of(record["schema"]))
        return [_counted(record["count"]) for record in records], schema

    def _work(self, document: dict[str, Any], gpu: float) -> Work:
        return Work(
            folder=str(self._folder),
            model=self._version.ref,
            path=self._version.path,
            digest=self._version.digest,
            signature=self._signature,
            rows=replace(self._rows, files=()),
            schema=base64.b64decode(document["schema"]),
            outputs=document["outputs"],
            reason=document["reason"],
            batch_rows=self._options.batch_rows,
            white=self._options.white,
            device="cuda" if gpu else "cpu",
        )

    def _computed(self, missing: Sequence[Part], work: Work, workers: int, gpu: float) -> Iterator[dict[str, Any]]:
        items = [{"part": json.dumps(plan.to_json([part])), "contents": self._contents(part)} for part in missing]
        # One part at a time for each worker: what it has begun is lost with it, and the last parts are spread evenly.
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=1)
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker, fn_constructor_args=(work,), compute=pool, num_cpus=1, num_gpus=gpu, batch_size=1
        )
        yield from _records(dataset)

    def _contents(self, part: Part) -> str:
        if not self._rows.content:
            return "[]"
        (piece,) = part.slices
        return json.dumps([file.path for file in self._rows.files[piece.start : piece.start + piece.rows]])

    def _finished(self, planned: Sequence[Part], reason: str) -> Batch:
        refused = sum(_refused(self._folder / part.name, reason) for part in planned) if reason else 0
        rows = sum(part.rows for part in planned)
        manifest = {
            "model": self._version.ref,
            "digest": self._version.digest,
            "source": shown(self._rows.source.path),
            "options": self._options.__dict__,
            "rows": rows,
            "refused": refused,
            "parts": [{"name": part.name, "rows": part.rows} for part in planned],
        }
        _write_json(self._folder / MANIFEST, manifest)
        paths = tuple(self._folder / part.name for part in planned)
        return Batch(self._folder, self._version.ref, paths, rows, refused)


class _Worker:
    """The class that Ray Data makes an actor of."""

    def __init__(self, work: Work) -> None:
        self._writer = PartWriter(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (part,) = plan.from_json(json.loads(batch["part"][0]))
        try:
            record = self._writer.write(part, json.loads(batch["contents"][0]))
        except TidegateError as error:
            # Told, not raised: Ray would wrap it, and try such a part again.
            record = {"name": part.name, "rows": 0, "refused": 0, **_told(error)}
        return {"record": [json.dumps(record)]}


def _told(error: TidegateError) -> dict[str, str]:
    words = {"happened": error.happened, "expected": error.expected, "remedy": error.remedy}
    return {"error": json.dumps([type(error).__name__, words])}


def _records(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The records as they come. Raises the error that one of them tells of."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            record = json.loads(row["record"])
            if record.get("error"):
                kind, words = json.loads(record["error"])
                raise getattr(errors, kind)(words.pop("happened"), **words)
            yield record


def _counted(found: list[Any]) -> plan.Counted:
    path, size, rows, groups = found
    return plan.Counted(path, size, rows, tuple(groups))


def _text_of(schema: pa.Schema) -> str:
    return base64.b64encode(schema.remove_metadata().serialize()).decode()


def _schema_of(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _signature(version: Version) -> Signature:
    """What the version takes and answers. The workers verify its files, this process does not load it."""
    try:
        document = json.loads((Path(version.path) / MODEL).read_text())
        return Signature.from_json(document["signature"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{version.ref} cannot be used: {error}", remedy="restore its files, or train or register it again"
        ) from None


def _refused(path: Path, reason: str) -> int:
    column = pa.parquet.read_table(path, columns=[reason]).column(0)
    return int(len(column) - column.null_count)


def _free(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else next(f"{name}_{n}" for n in count(2) if f"{name}_{n}" not in taken)


def _write_json(path: Path, document: Any) -> None:
    part = path.with_name(f".{path.name}.partial")
    part.write_text(json.dumps(document, indent=1))
    part.replace(path)
