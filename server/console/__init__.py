"""The web console: pages for people, rendered here; no script, nothing from elsewhere."""

from server.console.router import router

__all__ = ["router"]
