"""Libraries that are compared: how they are recognized and installed."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


@dataclass(frozen=True)
class Library:
    """Peer, or lamp itself."""

    modules: tuple[str, ...]
    """Modules that it needs."""
    packages: tuple[str, ...]
    """Names of their distributions, which `pip install` takes; the first is the peer itself."""

    @property
    def is_installed(self) -> bool:
        return all(find_spec(module) is not None for module in self.modules)

    @property
    def problem(self) -> str:
        """Why it cannot be compared with; empty where it is installed."""
        return "" if self.is_installed else f"not installed: {self.advice}"

    @property
    def advice(self) -> str:
        """Command that installs the peer."""
        return f"pip install {' '.join(self.packages)}"


LIBRARIES: dict[str, Library] = {
    "lamp": Library(("jax", "flax"), ("jax", "flax", "numpy")),
    "transformers": Library(("torch",), ("transformers", "torch")),
    "ctranslate2": Library(("ctranslate2", "torch"), ("ctranslate2", "torch")),
    "rank-bm25-rs": Library(("rank_bm25_rs",), ("rank-bm25-rs",)),
    "rank_bm25": Library(("rank_bm25",), ("rank_bm25",)),
    "sentence-transformers": Library(("sentence_transformers", "torch"), ("sentence-transformers", "torch")),
    "onnxruntime": Library(("onnxruntime", "onnx", "torch"), ("onnxruntime", "onnx", "torch")),
    "peft": Library(("peft", "torch"), ("peft", "torch")),
}
"""Libraries by the name that `--against` takes."""


def versions() -> dict[str, str]:
    """Versions of all installed distributions of the table."""
    found = {}
    for name in sorted({package for library in LIBRARIES.values() for package in library.packages}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
