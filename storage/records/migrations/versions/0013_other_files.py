"""Where else the data of a study is, as on machines that have it at other paths."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("anitune_studies", sa.Column("other_files", sa.Text()))


def downgrade() -> None:
    op.drop_column("anitune_studies", "other_files")
