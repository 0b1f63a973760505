"""Indexes for studies of many trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_UNTOLD = sa.text("told IS false")
_UNTOLD_SQLITE = sa.text("told IS 0")


def upgrade() -> None:
    op.create_index(
        "ix_anitune_trials_untold",
        "anitune_trials",
        ["study_id", "number"],
        postgresql_where=_UNTOLD,
        sqlite_where=_UNTOLD_SQLITE,
    )
    op.create_index("ix_anitune_trials_best", "anitune_trials", ["study_id", "state", "value", "number"])


def downgrade() -> None:
    op.drop_index("ix_anitune_trials_best", "anitune_trials")
    op.drop_index("ix_anitune_trials_untold", "anitune_trials")
