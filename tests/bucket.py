"""Bucket in a local directory: `bucket://tmp/x` is `/tmp/x`, accessed through fsspec like any other file system."""

from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lamp_jax.runs import remote


class Bucket(LocalFileSystem):
    """Local files under another protocol, because lamp makes no copies of `file://` URLs."""

    protocol = "bucket"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("bucket://").strip("/")


fsspec.register_implementation("bucket", Bucket, clobber=True)


def url(path: Path) -> str:
    return f"bucket:/{path}"


def let_orbax_write(monkeypatch) -> None:
    """Lets orbax write checkpoints to such a bucket, whose protocol it does not know."""
    place = remote.checkpoint_location
    monkeypatch.setattr(remote, "_NATIVE", ("gs://", "s3://", "bucket://"))
    monkeypatch.setattr(remote, "checkpoint_location", lambda path: place(path).replace("bucket://", "/"))
