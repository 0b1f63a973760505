"""Learning curves of studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "anitune_learning_curves",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["anitune_studies.id"], name=op.f("fk_anitune_learning_curves_anitune_studies")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_anitune_learning_curves")),
    )
    op.create_index(op.f("ix_anitune_learning_curves_study_id"), "anitune_learning_curves", ["study_id"])


def downgrade() -> None:
    op.drop_table("anitune_learning_curves")
