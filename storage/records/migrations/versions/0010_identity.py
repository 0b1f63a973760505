"""A mark by which a database knows the folders of its files."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table(
        "anitune_identity",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mark", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_anitune_identity")),
    )
    # The folder of artifacts that it may have knows it already.
    mark = op.get_bind().execute(sa.text("SELECT mark FROM anitune_artifact_place")).scalar()
    op.bulk_insert(identity, [{"id": 1, "mark": mark or uuid.uuid4().hex}])
    op.drop_column("anitune_artifact_place", "mark")


def downgrade() -> None:
    op.add_column("anitune_artifact_place", sa.Column("mark", sa.String(length=32), nullable=True))
    op.execute("UPDATE anitune_artifact_place SET mark = (SELECT mark FROM anitune_identity)")
    op.drop_table("anitune_identity")
