"""Whether the finalists of a study were chosen: a worker comes for a study in which they were not.

In existing studies they are chosen once more. That adds nothing where none of them lacks a seed.
"""

from __future__ import annotations

import json
from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_studies: Final = sa.table(
    "anitune_studies",
    sa.column("id", sa.Integer),
    sa.column("config", sa.Text),
    sa.column("finalists_among", sa.Integer),
)


def upgrade() -> None:
    op.add_column("anitune_studies", sa.Column("finalists_among", sa.Integer()))
    connection = op.get_bind()
    for row in connection.execute(sa.select(_studies.c.id, _studies.c.config)).all():
        if json.loads(row.config).get("finalists") is not None:
            connection.execute(sa.update(_studies).where(_studies.c.id == row.id).values(finalists_among=0))


def downgrade() -> None:
    op.drop_column("anitune_studies", "finalists_among")
