"""Which runs are imported, on which kinds of machine the attempts of a run ran, and since when a run seems to hang."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("run", sa.Column("imported", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("run", sa.Column("hanging_since", sa.String(), nullable=True))
    op.add_column("run", sa.Column("machines", sa.JSON(), nullable=False, server_default="[]"))
