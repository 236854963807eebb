from pathlib import Path

import pytest
from pydantic import ValidationError

from server.config import Settings, load_settings
from server.errors import ConfigurationError


def test_every_setting_is_documented() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert not undocumented


def test_the_environment_is_read_with_its_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path))
    monkeypatch.setenv("LAMELLA_PORT", "9000")
    settings = load_settings()
    assert (settings.home, settings.port, settings.public_url) == (tmp_path, 9000, "http://127.0.0.1:9000")
    assert load_settings(port=9001).port == 9001


def test_the_default_home_is_the_users() -> None:
    assert load_settings().home == Path.home() / ".lamella" / "server"


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_the_databases_password_is_never_printed() -> None:
    settings = Settings(database_url="postgresql://user:hunter2@db/lamella")
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.sqlalchemy_url == "postgresql+psycopg://user:hunter2@db/lamella"


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "99999"), ("PUBLIC_URL", "ftp://x"), ("GATE_MARGIN", "nan"), ("TIMESTAMP_EXPIRY_HOURS", "0")],
)
def test_a_wrong_setting_names_its_variable_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LAMELLA_{name}", value)
    with pytest.raises(ConfigurationError, match=f"LAMELLA_{name}") as caught:
        load_settings()
    assert value not in str(caught.value)
