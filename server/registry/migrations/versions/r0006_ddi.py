"""Controllers, gateway tokens and actions of hawkBit's protocol, and the digests that its clients want."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; devices enrolled so far speak the other protocol."""
    _create_who()
    op.create_table(
        "ddi_actions",
        sa.Column("action_id", sa.Integer(), nullable=False),
        sa.Column("offer_id", sa.String(length=32), nullable=False),
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["offer_id"], ["offers.offer_id"], name=op.f("fk_ddi_actions_offer_id_offers")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_ddi_actions_device_id_devices")),
        sa.PrimaryKeyConstraint("action_id", name=op.f("pk_ddi_actions")),
        sa.UniqueConstraint("offer_id", name=op.f("uq_ddi_actions_offer_id")),
    )
    op.create_index("ix_ddi_actions_device_id_state", "ddi_actions", ["device_id", "state"], unique=False)
    op.create_table(
        "ddi_digests",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("sha1", sa.String(length=40), nullable=False),
        sa.Column("md5", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_ddi_digests")),
    )
    op.create_table(
        "ddi_images",
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("recipe", name=op.f("pk_ddi_images")),
    )


def downgrade() -> None:
    """Remove them; the controllers' devices stay in the list, and nobody can speak for them."""
    op.drop_table("ddi_images")
    op.drop_table("ddi_digests")
    op.drop_index("ix_ddi_actions_device_id_state", table_name="ddi_actions")
    op.drop_table("ddi_actions")
    op.drop_index("ix_ddi_controllers_gateway_token_id", table_name="ddi_controllers")
    op.drop_table("ddi_controllers")
    op.drop_index("ix_ddi_gateway_tokens_model", table_name="ddi_gateway_tokens")
    op.drop_table("ddi_gateway_tokens")


def _create_who() -> None:
    op.create_table(
        "ddi_gateway_tokens",
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("device_limit", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_ddi_gateway_tokens_model_models")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_ddi_gateway_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_ddi_gateway_tokens_token_sha256")),
    )
    op.create_index("ix_ddi_gateway_tokens_model", "ddi_gateway_tokens", ["model"], unique=False)
    op.create_table(
        "ddi_controllers",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("controller_id", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=True),
        sa.Column("gateway_token_id", sa.Integer(), nullable=True),
        sa.Column("attributes", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_ddi_controllers_model_models")),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.device_id"], name=op.f("fk_ddi_controllers_device_id_devices")
        ),
        sa.ForeignKeyConstraint(
            ["gateway_token_id"],
            ["ddi_gateway_tokens.token_id"],
            name=op.f("fk_ddi_controllers_gateway_token_id_ddi_gateway_tokens"),
        ),
        sa.PrimaryKeyConstraint("model", "controller_id", name=op.f("pk_ddi_controllers")),
        sa.UniqueConstraint("device_id", name=op.f("uq_ddi_controllers_device_id")),
    )
    op.create_index("ix_ddi_controllers_gateway_token_id", "ddi_controllers", ["gateway_token_id"], unique=False)
