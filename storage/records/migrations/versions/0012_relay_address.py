"""What a relay delivers to, so that whoever waits for it knows whether it will ever arrive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("anitune_relays", sa.Column("address", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("anitune_relays", "address")
