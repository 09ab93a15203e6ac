"""Imports that run beside waiting for the network."""

from contextlib import suppress
from importlib import import_module
from threading import Thread


def import_in_background(module: str) -> None:
    """Start to import a module that is needed later; what is wrong with it shows then."""

    def run() -> None:
        with suppress(Exception):
            import_module(module)

    Thread(target=run, daemon=True).start()
