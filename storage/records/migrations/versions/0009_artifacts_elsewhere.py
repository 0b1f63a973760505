"""Artifacts and checkpoints of machines that share no folder."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "anitune_checkpoints",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id", "number"],
            ["anitune_trials.study_id", "anitune_trials.number"],
            name=op.f("fk_anitune_checkpoints_anitune_trials"),
        ),
        sa.PrimaryKeyConstraint("study_id", "number", name=op.f("pk_anitune_checkpoints")),
    )
    op.create_table(
        "anitune_blobs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_anitune_blobs")),
    )
    op.create_table(
        "anitune_blob_parts",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["anitune_blobs.digest"],
            name=op.f("fk_anitune_blob_parts_anitune_blobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("digest", "part", name=op.f("pk_anitune_blob_parts")),
    )
    if op.get_bind().dialect.name == "postgresql":  # weights and pictures cannot be compressed
        op.execute("ALTER TABLE anitune_blob_parts ALTER COLUMN content SET STORAGE EXTERNAL")
    op.create_table(
        "anitune_artifact_place",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("mark", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_anitune_artifact_place")),
    )


def downgrade() -> None:
    op.drop_table("anitune_artifact_place")
    op.drop_table("anitune_blob_parts")
    op.drop_table("anitune_blobs")
    op.drop_table("anitune_checkpoints")
