"""What alembic runs for every command; the caller's connection and transaction are used as they are."""

from __future__ import annotations

from alembic import context

from storage.records.schema import context_options

context.configure(connection=context.config.attributes["connection"], **context_options())
context.run_migrations()
