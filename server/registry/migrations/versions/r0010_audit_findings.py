"""What audits found about runs."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "audit_findings",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("part", sa.String(length=64), nullable=False),
        sa.Column("asked_for", sa.String(length=64), nullable=False),
        sa.Column("finding", sa.JSON(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_audit_findings_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "part", name=op.f("pk_audit_findings")),
    )


def downgrade() -> None:
    """Forget what was found."""
    op.drop_table("audit_findings")
