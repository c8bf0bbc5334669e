"""Package metadata lives in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(interpolation=None)
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
meta = cfg["DEFAULT"]


def lines(key): return [x.strip() for x in meta[key].splitlines() if x.strip()]


def faiss():
    "faiss-cpu, unless a GPU build is already installed: the two packages share one import name."
    for name in ("faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12"):
        try: distribution(name)
        except PackageNotFoundError: continue
        return []
    return lines("cpu_requirements")


setup(
    name=meta["lib_name"], version=meta["version"], description=meta["description"], author=meta["author"],
    author_email=meta["author_email"], keywords=[k.strip() for k in meta["keywords"].split(",")], license=meta["license"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=f">={meta['min_python']}", packages=find_packages(include=["r3nb", "r3nb.*"]),
    package_data={"r3nb": ["assets/**/*", "assets/*", "shipped/**/*", "shipped/*", "examples.sh", "py.typed"]}, include_package_data=True,
    install_requires=lines("requirements") + faiss(),
    extras_require={k: lines(f"{k}_requirements") for k in ("gpu", "deepspeed", "docs")} | {"dev": lines("dev_requirements") + lines("docs_requirements")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["r3nb=r3nb._modidx:d"]},
    classifiers=["Programming Language :: Python :: 3.11", "Intended Audience :: Science/Research"],
)
