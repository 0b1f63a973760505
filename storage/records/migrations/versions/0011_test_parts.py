"""Openings belong to a test part and outlast their study; candidates that failed are remembered."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_KEPT = ("study_id", "promotion_id", "number", "config", "opened_by", "opened_at", "test_mae")


def upgrade() -> None:
    _create_openings(
        "anitune_test_openings",
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("promotion_id", _RowId, nullable=True),
        sa.Column("study", sa.String(length=100), nullable=False),
        sa.Column("data", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=64), nullable=False),
        sa.Column("ensemble", sa.String(length=64), nullable=True),
    )
    op.create_index(op.f("ix_anitune_test_openings_data"), "anitune_test_openings", ["data", "split"])
    connection = op.get_bind()
    known = connection.execute(
        sa.text(
            "SELECT o.*, s.name, s.facts FROM anitune_openings o"
            " JOIN anitune_studies s ON s.id = o.study_id ORDER BY o.id"
        )
    )
    for row in known.mappings().all():
        facts = json.loads(row["facts"])
        values = {name: row[name] for name in _KEPT}
        values |= {"study": row["name"], "data": facts.get("data", ""), "split": facts.get("split", "")}
        connection.execute(
            sa.text(
                f"INSERT INTO anitune_test_openings ({', '.join(values)})"
                f" VALUES ({', '.join(f':{name}' for name in values)})"
            ),
            values,
        )
    op.drop_table("anitune_openings")
    op.create_table(
        "anitune_promotion_failures",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["anitune_studies.id"],
            name=op.f("fk_anitune_promotion_failures_anitune_studies"),
        ),
        sa.PrimaryKeyConstraint("study_id", "key", name=op.f("pk_anitune_promotion_failures")),
    )


def downgrade() -> None:
    op.drop_table("anitune_promotion_failures")
    _create_openings(
        "anitune_openings",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("promotion_id", _RowId, nullable=False),
    )
    op.create_index(op.f("ix_anitune_openings_study_id"), "anitune_openings", ["study_id"])
    kept = ", ".join(_KEPT)
    op.execute(
        f"INSERT INTO anitune_openings ({kept}) SELECT {kept} FROM anitune_test_openings"
        " WHERE study_id IS NOT NULL ORDER BY id"
    )
    op.drop_table("anitune_test_openings")


def _create_openings(table: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        table,
        sa.Column("id", _RowId, nullable=False),
        *columns,
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("opened_by", sa.String(length=255), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("test_mae", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"], ["anitune_studies.id"], name=op.f(f"fk_{table}_anitune_studies")
        ),
        sa.ForeignKeyConstraint(
            ["promotion_id"], ["anitune_promotions.id"], name=op.f(f"fk_{table}_anitune_promotions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("promotion_id", name=op.f(f"uq_{table}_promotion_id")),
    )
