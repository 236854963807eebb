"""The REST API of the update service."""

from server.api.app import create_app, open_services
from server.api.services import Services

__all__ = ["Services", "create_app", "open_services"]
