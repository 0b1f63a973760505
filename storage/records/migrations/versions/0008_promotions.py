"""Promotions, what they trained, and openings of the test part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "anitune_promotions",
        sa.Column("id", _RowId, nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("results", sa.Text(), nullable=True),
        sa.Column("choice", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("test", sa.Text(), nullable=True),
        sa.Column("model_name", sa.String(length=250), nullable=True),
        sa.Column("model_version", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"], ["anitune_studies.id"], name=op.f("fk_anitune_promotions_anitune_studies")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_anitune_promotions")),
    )
    op.create_index(op.f("ix_anitune_promotions_study_id"), "anitune_promotions", ["study_id"])
    op.create_table(
        "anitune_promotion_trainings",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["anitune_studies.id"],
            name=op.f("fk_anitune_promotion_trainings_anitune_studies"),
        ),
        sa.PrimaryKeyConstraint("study_id", "key", name=op.f("pk_anitune_promotion_trainings")),
    )
    op.create_table(
        "anitune_openings",
        sa.Column("id", _RowId, nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("promotion_id", _RowId, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("opened_by", sa.String(length=255), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("test_mae", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"], ["anitune_studies.id"], name=op.f("fk_anitune_openings_anitune_studies")
        ),
        sa.ForeignKeyConstraint(
            ["promotion_id"], ["anitune_promotions.id"], name=op.f("fk_anitune_openings_anitune_promotions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_anitune_openings")),
        sa.UniqueConstraint("promotion_id", name=op.f("uq_anitune_openings_promotion_id")),
    )
    op.create_index(op.f("ix_anitune_openings_study_id"), "anitune_openings", ["study_id"])


def downgrade() -> None:
    op.drop_table("anitune_openings")
    op.drop_table("anitune_promotion_trainings")
    op.drop_table("anitune_promotions")
