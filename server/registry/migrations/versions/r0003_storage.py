"""When a package was collected (its row stays: offers of the past refer to it), and the token of the latest change."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both; no package from before was collected."""
    changes = op.create_table(
        "changes",
        sa.Column("change_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("change_id", name=op.f("pk_changes")),
    )
    op.bulk_insert(changes, [{"change_id": 1, "token": secrets.token_hex(32)}])
    op.add_column("packages", sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Forget it; packages whose bytes are gone go with it, and so do offers of them and what was reported."""
    gone = "SELECT path FROM packages WHERE collected_at IS NOT NULL"
    op.execute(f"DELETE FROM reports WHERE offer_id IN (SELECT offer_id FROM offers WHERE package_path IN ({gone}))")  # noqa: S608 - no value of anybody
    op.execute(f"DELETE FROM offers WHERE package_path IN ({gone})")  # noqa: S608
    op.execute("DELETE FROM packages WHERE collected_at IS NOT NULL")
    op.drop_column("packages", "collected_at")
    op.drop_table("changes")
