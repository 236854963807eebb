"""Public keys of devices; those enrolled so far go on with their credentials."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nobody has a key yet."""
    with op.batch_alter_table("devices") as devices:
        devices.add_column(sa.Column("public_key", sa.String(length=43), nullable=True))
        devices.create_unique_constraint(op.f("uq_devices_public_key"), ["public_key"])


def downgrade() -> None:
    """Forget the keys; whoever signs has to enrol again."""
    with op.batch_alter_table("devices") as devices:
        devices.drop_constraint(op.f("uq_devices_public_key"), type_="unique")
        devices.drop_column("public_key")
