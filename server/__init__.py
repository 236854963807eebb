"""The server: registry, publishing, signing, the update service's REST API and the federation's server side.

Importing this package loads only settings and errors; every part is imported by its own name, for example
``from server.registry import Registry``.
"""

from server.config import Settings, load_settings
from server.errors import ServerError

__all__ = ["ServerError", "Settings", "load_settings"]
