"""The package as others import it: an exact door, and light."""

import subprocess
import sys

import delta_updates


def test_all_is_exact() -> None:
    public = {
        name
        for name, value in vars(delta_updates).items()
        if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert set(delta_updates.__all__) == public


def test_importing_it_brings_nothing_heavy() -> None:
    script = "import delta_updates, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "bsdiff4", "fastapi", "sqlalchemy", "flwr", "opacus", "tuf", "safetensors"}
    assert not loaded & {"model", "privacy", "server", "client_sdk"}
