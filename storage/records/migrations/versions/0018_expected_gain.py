"""Studies that end when the expected gain of going on is below the noise of the error."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "anitune_studies",
        sa.Column("budget_until_no_gain", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column("anitune_studies", sa.Column("gain", sa.Text()))


def downgrade() -> None:
    op.drop_column("anitune_studies", "gain")
    op.drop_column("anitune_studies", "budget_until_no_gain")
