"""Imported runs, kinds of machine of a run's attempts, since when a run seems to hang, and why a queued one waits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("run", sa.Column("imported", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("run", sa.Column("queue_reason", sa.String(), nullable=False, server_default=""))
    op.add_column("run", sa.Column("hanging_since", sa.String(), nullable=True))
    op.add_column("run", sa.Column("machines", sa.JSON(), nullable=False, server_default="[]"))
