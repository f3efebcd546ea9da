"""An S3 server in this process, for tests of sources that lie in an object store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "acme"


@contextmanager
def object_store() -> Iterator[tuple[str, pafs.FileSystem]]:
    """Its address, and a file system on it; the environment has credentials, and leads nobody elsewhere."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("AWS_ENDPOINT_URL", raising=False)
            patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            address = f"{host}:{port}"
            # What another server of this process was given is still there.
            httpx.post(f"http://{address}/moto-api/reset").raise_for_status()
            store = pafs.S3FileSystem(endpoint_override=f"http://{address}", allow_bucket_creation=True)
            store.create_dir(BUCKET)
            yield address, store
    finally:
        server.stop()


def put(store: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write an object `acme/<path>`."""
    with store.open_output_stream(f"{BUCKET}/{path}") as stream:
        stream.write(content)
