"""`device.toml`: defaults, every key, and every way to write it wrongly."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_sdk.device_config import FILE_NAME, DeviceConfig
from client_sdk.errors import ConfigurationError

REPOSITORY = Path(__file__).parents[3]


def test_without_a_file_the_defaults(tmp_path: Path) -> None:
    assert DeviceConfig.read(tmp_path) == DeviceConfig()


def test_what_is_written_holds_and_the_rest_is_default(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(
        'scrub_interval_s = 0\n[download]\nmirrors = ["https://cdn.example.org/models"]\nmetered = "never"\n'
        "[self_test]\nmax_memory_bytes = 1000000\n"
    )
    config = DeviceConfig.read(tmp_path)
    assert [str(url) for url in config.download.mirrors] == ["https://cdn.example.org/models"]
    assert (config.download.metered, config.self_test.max_memory_bytes, config.scrub_interval_s) == ("never", 10**6, 0)
    assert config.download.min_battery_percent == DeviceConfig().download.min_battery_percent


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[download]\nmetred = 'never'", "download.metred"),
        ("[download]\nmin_battery_percent = 101", "download.min_battery_percent"),
        ("[download]\nmirrors = ['ftp://x']", "download.mirrors.0"),
        ("[self_test]\nmax_seconds = nan", "self_test.max_seconds"),
        ("[self_test]\nlogit_tolerance = 0", "self_test.logit_tolerance"),
        ("scrub_interval_s = -1", "scrub_interval_s"),
        ("= 3", "not TOML"),
        ("x" * 70_000, "longer than"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigurationError, match=FILE_NAME) as caught:
        DeviceConfig.read(tmp_path)
    assert named in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_a_config_or_one_clear_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(raw)
    with contextlib.suppress(ConfigurationError):
        DeviceConfig.read(tmp_path)


def test_every_key_is_documented() -> None:
    page = (REPOSITORY / "docs" / "updates.md").read_text()
    for section in (DeviceConfig, *(type(getattr(DeviceConfig(), name)) for name in ("download", "self_test"))):
        for key in section.model_fields:
            assert f"`{key}`" in page or f"`[{key}]`" in page, key
