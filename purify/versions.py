"""Which versions of the libraries a figure was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on.

    >>> "torch" in library_versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in ("purify-defense", "torch", "torchvision", "numpy", "scikit-learn", "pillow", "kornia", "foolbox"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "not installed"
    return found
