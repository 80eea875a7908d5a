"""File systems at URLs, through fsspec: opening, listing without patterns, errors that name the URL."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lamp_jax.errors import LampError

_PACKAGES = {"gs": "-e '.[gcs]'", "s3": "s3fs", "ssh": "paramiko", "sftp": "paramiko"}
_PACKAGES |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs")
# Most specific first: the names that file systems give to a file's version, digest or time of writing.
_VERSIONS = ("generation", "ETag", "etag", "mtime", "LastModified", "last_modified", "modified")


def open_url(url: str) -> tuple[Any, str]:
    """File system of a URL, and the path in it. LampError, with the remedy, where no file system handles the URL."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        raise LampError(f"{url}: {error}" + (f"; pip install {package}" if package else "")) from None
    except Exception as error:  # every file system has its own errors for URLs that it cannot use
        what = f"{type(error).__name__}: {error}"
        raise LampError(f"{url}: {what}; give a local path, or a URL such as gs://BUCKET/run") from error
    if not path.strip("/"):
        raise LampError(f"{url}: a complete file system; give a directory or a file in it")
    return fs, path.rstrip("/")


@contextlib.contextmanager
def naming_url(
    url: str, action: str, remedy: str = "; check the URL, the network and your permissions"
) -> Iterator[None]:
    """Context in which every error of a file system becomes a LampError with the URL; `action`: "read" or "written"."""
    try:
        yield
    except LampError:
        raise
    except Exception as error:
        raise LampError(f"{url}: cannot be {action} ({type(error).__name__}: {error}){remedy}") from error


def path_type(fs: Any, path: str) -> str | None:
    """`file`, `directory`, or None where the path does not exist. Other errors are raised."""
    try:
        return fs.info(path)["type"]
    except (FileNotFoundError, NotADirectoryError):
        return None


def file_version(fs: Any, path: str) -> str:
    """A text that changes when the file does; the same whether the file was listed or queried alone.

    fsspec's own `ukey` is not: it hashes all known fields, of which a listing has fewer.
    """
    info = fs.info(path)
    found = next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), None)
    return f"{info['size']} {found or fs.ukey(path)}"


def walk(fs: Any, path: str, folders: list[str] | None = None) -> Iterator[str]:
    """Path of a file, or paths of all files below a directory; each directory is added to `folders` after its children.

    Uses `ls`: other calls of fsspec take brackets for patterns.
    """
    kind = path_type(fs, path)
    if kind == "file":
        yield path
    elif kind == "directory":
        for entry in fs.ls(path, detail=True):
            name = entry["name"].rstrip("/")
            if name.strip("/") != path.strip("/"):  # object stores list the directory's own marker in it
                if entry["type"] == "directory":
                    yield from walk(fs, name, folders)
                elif entry["type"] != "other":  # pipes and sockets
                    yield name
        if folders is not None:
            folders.append(path)


def remove_tree(fs: Any, path: str) -> None:
    """Removes all files below a path, and the directories where the file system has them."""
    fs.invalidate_cache()
    folders: list[str] = []
    for name in [*walk(fs, path, folders)]:
        fs.rm_file(name)
    for folder in folders:
        with contextlib.suppress(OSError, NotImplementedError):
            fs.rmdir(folder)
