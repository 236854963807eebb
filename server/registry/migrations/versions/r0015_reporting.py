"""What a gate measured by group; whether a population has nobody in common with other models' on its base."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No gate has measured groups yet, and of no population has anybody said so."""
    op.add_column("versions", sa.Column("gate_groups", sa.JSON(), nullable=True))
    op.add_column("privacy_budgets", sa.Column("is_apart", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Forget both."""
    op.drop_column("privacy_budgets", "is_apart")
    op.drop_column("versions", "gate_groups")
