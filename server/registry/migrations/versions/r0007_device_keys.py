"""Public keys of devices; those enrolled so far go on with their credentials."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nobody has a key yet."""
    op.add_column("devices", sa.Column("public_key", sa.String(length=43), nullable=True))
    op.create_index("ix_devices_public_key", "devices", ["public_key"], unique=True)


def downgrade() -> None:
    """Forget the keys; whoever signs has to enrol again."""
    op.drop_index("ix_devices_public_key", "devices")
    op.drop_column("devices", "public_key")
