"""Which base was made from which: the bill of a base goes on in what is made from it."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "base_origins",
        sa.Column("base_hash", sa.String(length=64), nullable=False),
        sa.Column("made_from", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("base_hash", "made_from", name=op.f("pk_base_origins")),
    )


def downgrade() -> None:
    """Drop it: bases stand alone again."""
    op.drop_table("base_origins")
