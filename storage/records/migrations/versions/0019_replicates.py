"""Trials that train the configuration of another trial with another seed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("anitune_trials", sa.Column("replicate_of", sa.Integer()))


def downgrade() -> None:
    op.drop_column("anitune_trials", "replicate_of")
