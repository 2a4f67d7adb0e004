"""Packages: codistill_ext (the method), vision and translation (the two trainers)."""

from setuptools import find_packages, setup

TRAINERS = ["torch>=2.14"]  # the method alone is tested with older ones, too: tests/versions.sh
TRANSLATION = [
    *TRAINERS,
    "ve-fairseq==0.12.3",  # imports as fairseq; the official 0.12.2 does not import under Python 3.11
    "hydra-core>=1.3.2,<1.4",
    "omegaconf>=2.3,<2.4",
    "sacrebleu>=2.3",
    "sacremoses>=0.1",
    "sentencepiece>=0.2",
    "subword-nmt>=0.3.8",
    "tabulate>=0.9",
]
VISION = [*TRAINERS, "torchvision>=0.29", "numpy>=1.26", "pillow>=10", "pyarrow>=20", "tqdm>=4.60"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]
PLOTS = ["matplotlib>=3.8"]
# The runner of experiments, tables and figures.
RECIPES = [*PLOTS, "pandas>=2.2", "psutil>=5.9", "scipy>=1.11", "tabulate>=0.9"]
HOSTS = ["transformers>=5.24,<6", "accelerate>=1.15"]  # Hugging Face Trainer and Accelerate loops
FABRIC = ["lightning-fabric>=2.6,<3"]
DEV = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.6", "mypy>=1.11", "types-PyYAML"]

setup(
    name="codistill_ext",
    version="0.1.0",
    description="Codistillation: models that train at the same time and learn from each other's predictions",
    license="MIT",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["codistill_ext*", "vision*", "translation*"]),
    package_data={
        "codistill_ext": ["py.typed", "**/*.yaml"],
        "translation": ["data/*/NOTICE", "data/*/*.xz"],
    },
    install_requires=["torch>=2.6", "PyYAML>=6", "safetensors>=0.4.5", "tensorboard>=2.15"],
    extras_require={
        "translation": TRANSLATION + PLOTS,
        "vision": VISION + PLOTS,
        "recipes": RECIPES,
        "huggingface": HOSTS,
        "fabric": FABRIC,
        "docs": DOCS,
        "dev": DEV,
    },
)
