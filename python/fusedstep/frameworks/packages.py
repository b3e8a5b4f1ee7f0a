"""Imports a framework, or says in one sentence why it cannot be used."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any


def imported(module: str, needs: str) -> Any:
    """A module of a framework. `needs` says which versions it is in.

    Example:
        >>> imported("torch.optim", "any torch")
        <module 'torch.optim' from ...>
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        found = version(package)
        if found is None:
            raise ImportError(
                f"register: {package} is not installed. Install {needs}: pip install {package}"
            ) from error
        raise ImportError(
            f"register: {package} {found} is installed, but {module} cannot be imported: {error} "
            f"register needs {needs}."
        ) from error


def hook(owner: Any, name: str, package: str, needs: str) -> Any:
    """What a framework has under that name, for ours to stand in for it."""
    try:
        return getattr(owner, name)
    except AttributeError:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise RuntimeError(
            f"register: {package} {version(package)} has no {where}.{name}, through which ours "
            f"would come in. register needs {needs}."
        ) from None


def version(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
