"""Imports that run beside waiting for the network."""

from importlib import import_module
from threading import Thread


def import_in_background(module: str) -> None:
    """Start to import a module that is needed later; a failure shows then."""
    Thread(target=import_module, args=(module,), daemon=True).start()
