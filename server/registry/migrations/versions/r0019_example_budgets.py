"""What one example of a model's devices may cost in all, and what audits had found before they were made again."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables, empty: a model's next run sets its budget."""
    op.create_table(
        "example_budgets",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("target_epsilon", sa.Double(), nullable=False),
        sa.Column("target_delta", sa.Double(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_example_budgets_model_models")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_example_budgets")),
    )
    op.create_table(
        "audit_history",
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("part", sa.String(length=64), nullable=False),
        sa.Column("finding", sa.JSON(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_audit_history_run_id_runs")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_history")),
    )
    op.create_index(op.f("ix_audit_history_run_id"), "audit_history", ["run_id"])


def downgrade() -> None:
    """Drop them: the newest recipe's budget counts again, and the newest finding alone is known."""
    op.drop_index(op.f("ix_audit_history_run_id"), table_name="audit_history")
    op.drop_table("audit_history")
    op.drop_table("example_budgets")
