"""Trials may be paused: an earlier version knows neither their state nor the message about it.

No table changes. The version keeps programs of before from working on the same database.
"""

from __future__ import annotations

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing."""


def downgrade() -> None:
    """Change nothing."""
