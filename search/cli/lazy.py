"""Commands that are imported when they are called, so that the help of the command line is fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command


class LazyCommand(TyperCommand):
    """A command that lists and completes by its name and summary alone. Calling it imports its function.

    Parameters
    ----------
    place : module and function, such as ``search.cli.train:train``; the function names the command by default
    summary : first paragraph of the function's docstring, which lists of commands show
    """

    def __init__(self, place: str, summary: str = "", name: str | None = None, hidden: bool = False) -> None:
        self._module, _, self._function = place.partition(":")
        name = name or self._function.rstrip("_").replace("_", "-")
        super().__init__(name, help=summary, hidden=hidden)

    def load(self) -> Any:
        """Import the function, and return its command with all parameters."""
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        app.command(self.name, hidden=self.hidden)(getattr(import_module(self._module), self._function))
        return get_command(app)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return a context of the imported command, which parses the arguments and runs."""
        return self.load().make_context(*args, **kwargs)
