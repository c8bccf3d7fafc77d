"""Indexes for the list of runs and its filters, so that they are queried without reading the runs themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    columns: list[str | sa.TextClause] = ["archived", sa.text("created_at DESC"), "id", "group", "seed", "status"]
    op.create_index("ix_run_list", "run", columns, if_not_exists=True)
    op.create_index("ix_run_archived_status", "run", ["archived", "status"], if_not_exists=True)
    op.drop_index("ix_run_archived", "run", if_exists=True)
    op.create_index("ix_run_tags", "run", ["tags"], if_not_exists=True)
