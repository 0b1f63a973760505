"""``anitune gc``: delete files that are no longer needed."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.opening import open_home
from search.cli.terminal import echo
from storage.database import Database
from storage.garbage import find_garbage, remove
from storage.studies import list_studies, open_study
from trainer.features.stores import remove_store, unneeded_stores
from trainer.fitting.checkpoints import CHECKPOINT


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Delete checkpoints, artifacts and feature stores that no study needs. Workers may keep running."""
    total = 0

    def report_deleted(kind: str, path: object, size: int) -> None:
        nonlocal total
        total += size
        echo(f"{'would delete' if dry_run else 'deleted'}  {kind:<10}  {format_bytes(size):>9}  {path}")

    with open_home() as database:
        garbage = find_garbage(database, CHECKPOINT)
        stores = unneeded_stores(database.settings.features, _needed_features(database))
        for each in garbage if dry_run else remove(database, garbage):
            report_deleted(each.kind, each.path, each.bytes)
        for store in stores:
            if dry_run or remove_store(store):
                report_deleted("features", store.path, store.bytes)
    echo(f"{format_bytes(total)} {'can be freed' if dry_run else 'freed'}")


def _needed_features(database: Database) -> set[tuple[str, str]]:
    facts = [open_study(database, summary.name).facts for summary in list_studies(database)]
    return {(each["data"], each["features"]) for each in facts if {"data", "features"} <= each.keys()}


def format_bytes(size: float) -> str:
    """Format a size with a suitable binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{size:.3g} GiB"
