"""What endpoints there should be, kept in one JSON file each under the home directory.

A cluster that is started again gets its endpoints from here, and a deployer that died goes on where it stood.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tidegate import disk, settings
from tidegate.registry import Version
from tidegate.spec.endpoint import Endpoint

LOGGER = logging.getLogger("ray.serve.tidegate")

OWNER = "tidegate-deployer"
NAMESPACE = "tidegate"
"""The actor that keeps what Serve runs equal to this (deployer.py)."""


@dataclass(frozen=True)
class Pinned:
    """One model version, down to the files and what they must hold."""

    ref: str
    version: int
    path: str
    digest: str


def pin(version: Version) -> Pinned:
    return Pinned(version.ref, version.number, version.path, version.digest)


@dataclass(frozen=True)
class Failure:
    """A version that was tried and did not come to serve. It is not tried again by itself."""

    pinned: Pinned
    message: str
    generation: int


@dataclass(frozen=True)
class Record:
    """The desired state of one endpoint.

    `serving` answered on all replicas; `rolling` is being tried; `previous` is what a failed deploy goes back to.
    `generation` counts the deploys of this name.
    """

    endpoint: Endpoint
    generation: int = 1
    serving: Pinned | None = None
    rolling: Pinned | None = None
    failure: Failure | None = None
    previous: Record | None = None

    @property
    def target(self) -> Pinned | None:
        """The version the replicas are told to serve."""
        return self.rolling or self.serving

    def deployed(self, endpoint: Endpoint, pinned: Pinned) -> Record:
        """A person asks for `endpoint` on `pinned`. What served last stays the way back, also over several asks."""
        way_back = self.previous or (replace(self, rolling=None) if self.serving else None)
        return Record(endpoint, self.generation + 1, self.serving, rolling=pinned, previous=way_back)

    def moved(self, pinned: Pinned) -> Record:
        """The reference of the endpoint now means `pinned`: an alias moved, or a newer version was registered."""
        if pinned == self.target or (self.failure and self.failure.pinned == pinned):
            return self
        return replace(self, rolling=pinned)

    def settled(self) -> Record:
        """The version being tried answers on all replicas."""
        return replace(self, serving=self.rolling or self.serving, rolling=None, failure=None, previous=None)

    def failed(self, message: str) -> Record:
        """The version being tried does not serve: back to what did, or to nothing."""
        if self.rolling is None:
            return self
        failure = Failure(self.rolling, message, self.generation)
        if self.previous is not None:
            return replace(self.previous, generation=self.generation, failure=failure)
        return replace(self, rolling=None, failure=failure)

    def to_json(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint.model_dump(mode="json"),
            "generation": self.generation,
            "serving": vars(self.serving) if self.serving else None,
            "rolling": vars(self.rolling) if self.rolling else None,
            "failure": {**vars(self.failure), "pinned": vars(self.failure.pinned)} if self.failure else None,
            "previous": self.previous.to_json() if self.previous else None,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        failure = value["failure"]
        return cls(
            Endpoint.model_validate(value["endpoint"]),
            value["generation"],
            Pinned(**value["serving"]) if value["serving"] else None,
            Pinned(**value["rolling"]) if value["rolling"] else None,
            Failure(**{**failure, "pinned": Pinned(**failure["pinned"])}) if failure else None,
            cls.from_json(value["previous"]) if value["previous"] else None,
        )


def load_all() -> dict[str, Record]:
    """Every endpoint kept. A file that cannot be read is left where it is and told in the log."""
    records = {}
    for path in sorted(_folder().glob("*.json")):
        try:
            record = Record.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOGGER.error(
                "The endpoint file %s cannot be read; deploy the endpoint again to replace it: %s", path, error
            )
            continue
        records[record.endpoint.name] = record
    return records


def save(record: Record) -> None:
    disk.write_whole(_path(record.endpoint.name), (json.dumps(record.to_json(), indent=2) + "\n").encode())


def delete(name: str) -> None:
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return _folder() / f"{name}.json"


def _folder() -> Path:
    folder = settings.home() / "endpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
