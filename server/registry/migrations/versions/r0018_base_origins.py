"""Which base was made from which, and the most that a group of text might get worse."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and the column."""
    op.create_table(
        "base_origins",
        sa.Column("base_hash", sa.String(length=64), nullable=False),
        sa.Column("made_from", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("base_hash", "made_from", name=op.f("pk_base_origins")),
    )
    op.add_column("versions", sa.Column("gate_worst_group_margin", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop them: bases stand alone again."""
    op.drop_column("versions", "gate_worst_group_margin")
    op.drop_table("base_origins")
