"""Copies of the results of earlier studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "anitune_earlier_studies",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("results", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["anitune_studies.id"], name=op.f("fk_anitune_earlier_studies_anitune_studies")
        ),
        sa.PrimaryKeyConstraint("study_id", "position", name=op.f("pk_anitune_earlier_studies")),
    )


def downgrade() -> None:
    op.drop_table("anitune_earlier_studies")
