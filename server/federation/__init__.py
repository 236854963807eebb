"""The server's side of federated fine-tuning: a Flower ServerApp and the loop that it runs.

Nothing is imported here: the Flower app is named in `pyproject.toml` by its module, and the command line imports what
it needs.
"""

__all__: list[str] = []
