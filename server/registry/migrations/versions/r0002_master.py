"""The unrounded adapter that a version was made from: error feedback between releases needs it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the digest; versions from before were made without feedback."""
    op.add_column("versions", sa.Column("master_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Forget which artifacts are masters."""
    op.drop_column("versions", "master_sha256")
