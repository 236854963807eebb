"""What the owner of a device decides: `device.toml` in its home. Every key has a default; none holds a secret."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError

from client_sdk.errors import ConfigurationError

FILE_NAME = "device.toml"
_MAX_BYTES = 1 << 16


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DownloadPolicy(_Section):
    """When, from where and how fast packages are fetched.

    Attributes:
        mirrors: base URLs that hold packages by their signed path, tried before the server and never given the
            credential. What they send is checked like everything else.
        metered: on a connection that costs money: never download, only `small` packages, or always.
        metered_max_bytes: what small means.
        min_battery_percent: below this, a device that is not charging waits.
        reserve_bytes: disk space that an update leaves free for everything else on the device.
        min_rate_bytes_per_s, rate_window_s: a slower source over the window is given up for the next one.
        deadline_s: for one package as a whole; what arrived is kept and continued by the next update.
    """

    mirrors: Annotated[tuple[AnyHttpUrl, ...], Field(max_length=16)] = ()
    metered: Literal["never", "small", "always"] = "small"
    metered_max_bytes: Annotated[int, Field(ge=0)] = 5_000_000
    min_battery_percent: Annotated[int, Field(ge=0, le=100)] = 20
    reserve_bytes: Annotated[int, Field(ge=0)] = 50_000_000
    min_rate_bytes_per_s: Annotated[float, Field(gt=0)] = 1024.0
    rate_window_s: Annotated[float, Field(gt=0)] = 60.0
    deadline_s: Annotated[float, Field(gt=0)] = 6 * 3600.0


class SelfTestLimits(_Section):
    """What a new version must keep to on this device before it serves.

    Attributes:
        max_seconds: for the whole self-test; a version that hangs is reverted.
        max_memory_bytes: most memory (resident set) the self-test's process may ever have had; None measures only.
        min_tokens_per_second: of the self-test's answer with the torch back end; None measures only.
        logit_tolerance: how far the expected logits that the version was signed with may be off. Processors differ in
            their last bits; a wrong weight moves logits by much more.
        probe: folder of JSON lines with examples of this device's own, relative to its home; they never leave it.
        max_loss_increase: nats per token that the probe's loss may rise above the version that serves.
    """

    max_seconds: Annotated[float, Field(gt=0)] = 600.0
    max_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    min_tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    logit_tolerance: Annotated[float, Field(gt=0)] = 0.05
    probe: str = "probe"
    max_loss_increase: Annotated[float, Field(ge=0)] = 0.05


class ReportPolicy(_Section):
    """What is told to the service about a version that was confirmed, beyond that it was. Nothing unless it is set.

    Attributes:
        share_speed: tokens per second and memory of the self-test.
        share_loss: how much the probe's loss rose over the version before; with noise, so that one report says little.
        loss_epsilon: ε of that noise, for each version; smaller is more private.
    """

    share_speed: bool = False
    share_loss: bool = False
    loss_epsilon: Annotated[float, Field(gt=0, le=100)] = 1.0


class ReleasePolicy(_Section):
    """Which releases this device takes.

    Attributes:
        max_epsilon: most ε, per example and per user, that a release's signed privacy statement may say; a release
            without a statement is then refused. None takes every release.
    """

    max_epsilon: Annotated[float, Field(gt=0)] | None = None

    def limit(self, other: float | None) -> float | None:
        """The stricter of this limit and another."""
        return min((one for one in (self.max_epsilon, other) if one is not None), default=None)


class TrainingPolicy(_Section):
    """In which federated rounds this device takes part.

    Attributes:
        require_secure_aggregation: decline every round that would show the server this device's update alone.
    """

    require_secure_aggregation: bool = False


class DeviceConfig(_Section):
    """The whole file.

    Attributes:
        download: see `DownloadPolicy`.
        self_test: see `SelfTestLimits`.
        reports: see `ReportPolicy`.
        releases: see `ReleasePolicy`.
        training: see `TrainingPolicy`.
        scrub_interval_s: the agent hashes the installed version this often and repairs it; 0 never.
    """

    download: DownloadPolicy = DownloadPolicy()
    self_test: SelfTestLimits = SelfTestLimits()
    reports: ReportPolicy = ReportPolicy()
    releases: ReleasePolicy = ReleasePolicy()
    training: TrainingPolicy = TrainingPolicy()
    scrub_interval_s: Annotated[float, Field(ge=0)] = 7 * 24 * 3600.0

    @classmethod
    def read(cls, home: Path) -> Self:
        """Read `device.toml` of a home; without one, the defaults.

        Raises:
            ConfigurationError: it cannot be read, is not TOML, or has an unknown key or a value out of range.
        """
        path = home / FILE_NAME
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Check its owner.") from error
        if len(raw) > _MAX_BYTES:
            raise ConfigurationError(f"{path} is longer than {_MAX_BYTES} bytes. Remove what does not belong there.")
        try:
            return cls.model_validate(tomllib.loads(raw.decode()))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML ({error}). Correct it, or remove it.") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {key}: {first['msg']}. See docs/updates.md for the keys.") from None
