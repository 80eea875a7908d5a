"""Download manifest of a tree (`download.json`): records complete files, and checks files against their entries."""

import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from lamp_jax.data.files import read_outputs, stream_questions
from lamp_jax.data.layout import FileKind, TreeFile
from lamp_jax.errors import LampError
from lamp_jax.runs.json_files import read_json, write_json
from lamp_jax.runs.records import digest


@dataclass(frozen=True)
class ManifestEntry:
    """Entry of a complete file in `download.json`. `url` is None for a file that existed before the download."""

    url: str | None
    size: int
    sha256: str
    records: int
    etag: str | None


class DownloadManifest:
    """Manifest of a tree, `download.json`, with an entry per complete file. Threads may share it, processes may not."""

    def __init__(self, root: Path):
        self.path = root / "download.json"
        self._lock = threading.Lock()
        self._entries = self._read()

    def find(self, file: TreeFile) -> ManifestEntry | None:
        return self._entries.get(str(file.path))

    def record(self, file: TreeFile, entry: ManifestEntry) -> None:
        with self._lock:
            self._entries[str(file.path)] = entry
            write_json(self.path, {path: asdict(self._entries[path]) for path in sorted(self._entries)})

    def _read(self) -> dict[str, ManifestEntry]:
        if not self.path.exists():
            return {}
        try:
            return {path: ManifestEntry(**entry) for path, entry in read_json(self.path).items()}
        except (AttributeError, TypeError):
            raise LampError(
                f"{self.path}: not a download manifest; remove it, and `lamp download` checks the files again"
            ) from None


def examine(path: Path, kind: FileKind, *, url: str | None = None, etag: str | None = None) -> ManifestEntry:
    """Entry of a file after reading all of it. LampError where it is not a complete file of its kind."""
    records = sum(1 for _ in stream_questions(path)) if kind == "questions" else len(read_outputs(path).by_id)
    return ManifestEntry(url, path.stat().st_size, digest(str(path)), records, etag)


def find_fault(file: TreeFile, root: Path, manifest: DownloadManifest) -> str:
    """Difference of a file of the tree from its entry; "" where there is none."""
    path, entry = root / file.path, manifest.find(file)
    if not path.is_file():
        return "missing"
    if entry is None:
        return "not recorded; run `lamp download` to check and record it"
    if path.stat().st_size != entry.size:
        return f"{path.stat().st_size} bytes, but {entry.size} were recorded"
    if digest(str(path)) != entry.sha256:
        return "changed: its SHA-256 is not the recorded one"
    try:
        examine(path, file.kind)
    except LampError as error:
        return str(error)
    return ""
