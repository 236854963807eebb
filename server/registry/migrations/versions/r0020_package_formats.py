"""The format of each package: an older device is offered none that it cannot read."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; until now every package was written in format 4."""
    op.add_column("packages", sa.Column("format", sa.Integer(), nullable=False, server_default="4"))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("packages", "format")
