"""Rollouts, channels and device policies; what was released before is a finished rollout to everybody."""

import json
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_REASON = "released before there were rollouts"
_PLAN = {
    "channel": "stable",
    "groups": [],
    "tags": [],
    "phases": [100.0],
    "success_threshold": 0.95,
    "failure_threshold": 0.1,
    "min_reports": 20,
    "soak_hours": 1.0,
    "quality": [],
    "is_automatic": True,
    "not_before": None,
    "window": None,
}


def upgrade() -> None:
    """Add the tables, and a finished rollout for each release."""
    _create_rollouts()
    _create_devices()
    op.add_column("offers", sa.Column("rollout_id", sa.Integer(), nullable=True))
    op.create_index(op.f("ix_offers_rollout_id"), "offers", ["rollout_id"], unique=False)
    _fill()


def downgrade() -> None:
    """Remove them; the newest release is everybody's again."""
    op.drop_index(op.f("ix_offers_rollout_id"), table_name="offers")
    op.drop_column("offers", "rollout_id")
    op.drop_table("device_policies")
    op.drop_table("channel_moves")
    op.drop_table("rollout_devices")
    op.drop_table("rollout_changes")
    op.drop_index("ix_rollouts_model_version", table_name="rollouts")
    op.drop_table("rollouts")
    # The release before knows no withdrawn versions; offering one again would be worse than not knowing it.
    op.execute("UPDATE versions SET state = 'rejected' WHERE state = 'withdrawn'")


def _create_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("phase_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("phase_devices", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["versions.model", "versions.number"], name=op.f("fk_rollouts_model_version_versions")
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("pk_rollouts")),
    )
    op.create_index("ix_rollouts_model_version", "rollouts", ["model", "version"], unique=False)
    op.create_table(
        "rollout_changes",
        sa.Column("rollout_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.rollout_id"], name=op.f("fk_rollout_changes_rollout_id_rollouts")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "revision", name=op.f("pk_rollout_changes")),
    )
    op.create_table(
        "channel_moves",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("rollout_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_channel_moves_model_models")),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["versions.model", "versions.number"],
            name=op.f("fk_channel_moves_model_version_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.rollout_id"], name=op.f("fk_channel_moves_rollout_id_rollouts")
        ),
        sa.PrimaryKeyConstraint("model", "channel", "position", name=op.f("pk_channel_moves")),
    )


def _create_devices() -> None:
    op.create_table(
        "rollout_devices",
        sa.Column("rollout_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("loss_increase", sa.Double(), nullable=True),
        sa.Column("tokens_per_second", sa.Double(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.rollout_id"], name=op.f("fk_rollout_devices_rollout_id_rollouts")
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.device_id"], name=op.f("fk_rollout_devices_device_id_devices")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name=op.f("pk_rollout_devices")),
    )
    op.create_table(
        "device_policies",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("group_name", sa.String(length=64), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("is_opted_out", sa.Boolean(), nullable=False),
        sa.Column("forced_version", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.device_id"], name=op.f("fk_device_policies_device_id_devices")
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_policies")),
    )


def _fill() -> None:
    connection = op.get_bind()
    released = connection.execute(
        sa.text("SELECT model, number FROM versions WHERE state = 'released' ORDER BY model, number")
    ).all()
    now = datetime.now(UTC)
    moment = sa.bindparam("now", now, sa.DateTime(timezone=True))
    positions: dict[str, int] = {}
    for model, number in released:
        rollout_id = connection.execute(
            sa.text(
                "INSERT INTO rollouts (model, version, plan, channel, state, phase, phase_started_at, phase_devices, "
                "reason, revision, created_at) VALUES (:model, :version, :plan, 'stable', 'finished', 0, NULL, 0, "
                ":reason, 1, :now) RETURNING rollout_id"
            ).bindparams(moment),
            {"model": model, "version": number, "plan": json.dumps(_PLAN), "reason": _REASON},
        ).scalar_one()
        positions[model] = positions.get(model, 0) + 1
        connection.execute(
            sa.text(
                "INSERT INTO rollout_changes (rollout_id, revision, state, phase, reason, changed_at) "
                "VALUES (:rollout_id, 1, 'finished', 0, :reason, :now)"
            ).bindparams(moment),
            {"rollout_id": rollout_id, "reason": _REASON},
        )
        connection.execute(
            sa.text(
                "INSERT INTO channel_moves (model, channel, position, version, rollout_id, reason, moved_at) "
                "VALUES (:model, 'stable', :position, :version, :rollout_id, :reason, :now)"
            ).bindparams(moment),
            {
                "model": model,
                "position": positions[model],
                "version": number,
                "rollout_id": rollout_id,
                "reason": _REASON,
            },
        )
