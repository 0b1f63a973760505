"""Versions of the tables, and the upgrade of a database to the newest one.

A change of ``tables.py`` needs a migration; ``python -m storage.records.schema "what changes"`` drafts it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import alembic.command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from storage.errors import SchemaTooNewError
from storage.records.tables import PREFIX, VERSION_TABLE, PlainJSON, metadata

MIGRATIONS = Path(__file__).parent / "migrations"


def version(connection: Connection) -> str | None:
    """The version of the tables, or ``None`` if there are none.

    Raises
    ------
    SchemaTooNewError
        if a newer version of the program made them.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    if found is not None and found not in _versions(MIGRATIONS):
        raise SchemaTooNewError(
            f"the database was made by a newer anitune (its tables have version {found}): upgrade anitune"
        )
    return found


def head() -> str:
    """The version of this program's tables."""
    return _versions(MIGRATIONS)[0]


@cache
def _versions(migrations: Path) -> tuple[str, ...]:
    """All versions that this program knows, the newest first. Alembic runs each migration's file to tell."""
    return tuple(each.revision for each in ScriptDirectory(str(migrations)).walk_revisions())


def upgrade(connection: Connection) -> None:
    """Upgrade the tables to the version of this program, in the open transaction."""
    alembic.command.upgrade(_config(connection), "head")


def context_options() -> dict[str, Any]:
    """Options with which alembic ignores Optuna's tables in the same database."""
    return {
        "target_metadata": metadata,
        "version_table": VERSION_TABLE,
        "include_name": _is_ours,
        "render_item": _render,
        "compare_type": True,
    }


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or (name is not None and name.startswith(PREFIX) and name != VERSION_TABLE)


def _render(kind: str, item: Any, context: Any) -> str | bool:
    return "sa.Text()" if kind == "type" and isinstance(item, PlainJSON) else False


def _draft(message: str) -> None:
    with create_engine("sqlite://").begin() as connection:
        upgrade(connection)
        number = len(_versions(MIGRATIONS)) + 1
        alembic.command.revision(_config(connection), message, autogenerate=True, rev_id=f"{number:04d}")


if __name__ == "__main__":
    _draft(sys.argv[1])
