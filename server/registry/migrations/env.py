"""What Alembic runs: the migrations, on the connection and in the transaction of ``server.registry.migrations``."""

from alembic import context

from server.registry import rollout_tables  # noqa: F401 - its tables are part of the metadata
from server.registry.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite changes a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
