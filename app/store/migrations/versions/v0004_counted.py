"""What the stored answers say of a run's accuracies, and the version of each run in the index of the list.

Runs that were indexed before hold no defect until ``runoff reindex`` counts their answers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("epoch", schema=None) as batch_op:
        batch_op.add_column(sa.Column("logged_correct", sa.Integer(), nullable=True))
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("defect", sa.JSON(), nullable=True))
    op.drop_index("ix_run_list", "run", if_exists=True)
    columns: list[str | sa.TextClause] = ["archived", sa.text("created_at DESC"), "id", "group", "seed", "status"]
    op.create_index("ix_run_list", "run", [*columns, "version"])
