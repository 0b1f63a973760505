"""``anitune migrate``: migrate the tables of anitune, Optuna and MLflow after an upgrade."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from dashboards.local_servers import with_postgresql
from search.cli.options import Json
from search.cli.output import working
from search.cli.terminal import echo
from storage.database import Migration, migrate_database
from storage.settings import Settings, is_of_anitune_up, load_settings
from storage.tracking.mlflow_runs import alone_with
from storage.tracking.mlflow_tables import is_database, migrate_tables


def migrate(as_json: Json = False) -> None:
    """Migrate the tables of anitune, Optuna and MLflow after an upgrade.

    Stop the workers and make a backup first (docs/backup.md).
    """
    settings = load_settings()
    with working("migrating the tables"):
        migrations = _migrate(settings)
    if as_json:
        typer.echo(json.dumps([asdict(migration) for migration in migrations], indent=2))
        return
    for migration in migrations:
        echo(f"{migration.what:<8} {_version_change(migration)}")
    if not any(migration.what == "MLflow" for migration in migrations):
        echo("MLflow   keeps its tables behind its server: give its database with --tracking")


def _migrate(settings: Settings) -> list[Migration]:
    if is_of_anitune_up(settings.storage_url, settings.home):
        with with_postgresql(settings.home) as mlflow:
            return [*migrate_database(settings), migrate_tables(mlflow)]
    migrations = migrate_database(settings)
    if is_database(settings.tracking_uri):
        with alone_with(settings.home / "mlartifacts"):  # so that no relay opens them meanwhile
            migrations.append(migrate_tables(settings.tracking_uri))
    return migrations


def _version_change(migration: Migration) -> str:
    if migration.before is None:
        return f"created, version {migration.now}"
    if migration.before == migration.now:
        return f"up to date, version {migration.now}"
    return f"{migration.before} -> {migration.now}"
