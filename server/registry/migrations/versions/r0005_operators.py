"""Operators, their tokens and sessions, the audit log, and enrolment tokens for several devices."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; enrolment tokens from before are for one device."""
    op.create_table(
        "operators",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_operators")),
    )
    op.create_table(
        "operator_tokens",
        sa.Column("token_id", sa.String(length=16), nullable=False),
        sa.Column("operator", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["operator"], ["operators.name"], name=op.f("fk_operator_tokens_operator_operators")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_operator_tokens")),
    )
    op.create_index(op.f("ix_operator_tokens_operator"), "operator_tokens", ["operator"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("session_sha256", sa.String(length=64), nullable=False),
        sa.Column("operator", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["operator"], ["operators.name"], name=op.f("fk_sessions_operator_operators")),
        sa.PrimaryKeyConstraint("session_sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_operator"), "sessions", ["operator"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("via", sa.String(length=16), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_log")),
    )
    op.add_column("enrolment_tokens", sa.Column("max_uses", sa.Integer(), server_default="1", nullable=False))
    op.add_column("enrolment_tokens", sa.Column("uses", sa.Integer(), server_default="0", nullable=False))
    op.add_column("enrolment_tokens", sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE enrolment_tokens SET uses = 1 WHERE used_at IS NOT NULL")


def downgrade() -> None:
    """Remove them; a counted enrolment token that is not used up becomes one for a single device, used if ever."""
    op.drop_column("enrolment_tokens", "revoked_at")
    op.drop_column("enrolment_tokens", "uses")
    op.drop_column("enrolment_tokens", "max_uses")
    op.drop_table("audit_log")
    op.drop_table("sessions")
    op.drop_table("operator_tokens")
    op.drop_table("operators")
