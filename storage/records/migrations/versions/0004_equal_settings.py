"""equal settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("anitune_trials", sa.Column("settings", sa.String(length=64), nullable=True))
    op.add_column("anitune_trials", sa.Column("same_as", sa.Integer(), nullable=True))
    op.create_index("ix_anitune_trials_settings", "anitune_trials", ["study_id", "settings"])


def downgrade() -> None:
    op.drop_index("ix_anitune_trials_settings", "anitune_trials")
    op.drop_column("anitune_trials", "same_as")
    op.drop_column("anitune_trials", "settings")
