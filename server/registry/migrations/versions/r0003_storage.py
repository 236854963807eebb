"""When a package was collected: its row stays, because offers of the past refer to it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the moment; no package from before was collected."""
    op.add_column("packages", sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Forget it; packages whose bytes are gone go with it, and so do offers of them and what was reported."""
    gone = "SELECT path FROM packages WHERE collected_at IS NOT NULL"
    op.execute(f"DELETE FROM reports WHERE offer_id IN (SELECT offer_id FROM offers WHERE package_path IN ({gone}))")  # noqa: S608 - no value of anybody
    op.execute(f"DELETE FROM offers WHERE package_path IN ({gone})")  # noqa: S608
    op.execute("DELETE FROM packages WHERE collected_at IS NOT NULL")
    op.drop_column("packages", "collected_at")
