"""Training FLOPs of epochs and runs; unknown (NULL) for what was trained before they were recorded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for table in ("run", "epoch"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("flops", sa.Float(), nullable=True))
