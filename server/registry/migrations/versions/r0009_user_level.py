"""Privacy events in chains, one a model; budgets of populations; keys of correlated noise."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, and chain the events that are there as they stand."""
    op.create_table(
        "privacy_chain",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("privacy_unit", sa.String(length=16), nullable=False),
        sa.Column("head", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["position"], ["privacy_events.position"], name=op.f("fk_privacy_chain_position_privacy_events")
        ),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_privacy_chain")),
        sa.UniqueConstraint("model", "sequence", name=op.f("uq_privacy_chain_model_sequence")),
    )
    op.create_table(
        "privacy_budgets",
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("target_epsilon", sa.Double(), nullable=False),
        sa.Column("target_delta", sa.Double(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["population"], ["models.name"], name=op.f("fk_privacy_budgets_population_models")),
        sa.PrimaryKeyConstraint("population", name=op.f("pk_privacy_budgets")),
    )
    op.create_table(
        "noise_keys",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_noise_keys_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_noise_keys")),
    )
    _chain_events(op.get_bind())


def downgrade() -> None:
    """Forget chains, budgets and keys; the events stay."""
    for name in ("noise_keys", "privacy_budgets", "privacy_chain"):
        op.drop_table(name)


def _chain_events(connection: sa.Connection) -> None:
    events = sa.table("privacy_events", *map(sa.column, ("position", "run_id", "event")))
    runs = sa.table("runs", *map(sa.column, ("run_id", "model")))
    chain = sa.table("privacy_chain", *map(sa.column, ("position", "model", "sequence", "privacy_unit", "head")))
    query = (
        sa.select(events.c.position, runs.c.model, events.c.event)
        .join(runs, runs.c.run_id == events.c.run_id)
        .order_by(events.c.position)
    )
    heads: dict[str, tuple[int, str]] = {}
    for position, model, raw in connection.execute(query).all():
        sequence, head = heads.get(model, (0, "0" * 64))
        event = json.loads(raw)
        line = json.dumps({"event": event, "format": 2, "previous": head}, sort_keys=True, separators=(",", ":"))
        head = hashlib.sha256((head + line).encode()).hexdigest()
        heads[model] = (sequence + 1, head)
        row = {"position": position, "model": model, "sequence": sequence + 1, "head": head}
        connection.execute(sa.insert(chain).values(row | {"privacy_unit": event["privacy_unit"]}))
