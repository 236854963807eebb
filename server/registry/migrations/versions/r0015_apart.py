"""Whether a population has nobody in common with those of other models on the same base."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody has said so of any yet."""
    op.add_column("privacy_budgets", sa.Column("is_apart", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("privacy_budgets", "is_apart")
