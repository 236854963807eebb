"""The operator's command, `lamella`: one file a group of commands."""

from server.cli.main import main

__all__ = ["main"]
