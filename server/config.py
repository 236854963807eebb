"""Settings of the server: one frozen class, read from the environment once at the start."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, HttpUrl, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "LAMELLA_"
# The device's, the containers' and the tests' own.
_OTHERS = ("LAMELLA_DEVICE_", "LAMELLA_API_PORT", "LAMELLA_BASE", "LAMELLA_TEST_")
_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)


class Settings(BaseSettings):
    """Everything an operator may set, as ``LAMELLA_<NAME>`` in the environment.

    The database URL may hold a password, so it is a secret: printing the settings does not show it.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", validate_default=True)

    home: Path = Field(
        default=Path("~/.lamella/server"),
        description="Folder that holds the database, artifacts, keys, signed metadata and the operator token.",
    )
    cache: Path = Field(
        default=Path("~/.cache/lamella"),
        description="Folder for converted weights, so that importing the same file again takes a second.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="URL of the registry, sqlite:///... or postgresql://...; unset: registry.sqlite in home.",
    )
    artifacts_url: str | None = Field(
        default=None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?$",
        description="Bucket of the artifact store, s3://bucket/prefix; unset: the folder artifacts in home.",
    )
    artifacts_endpoint: str | None = Field(
        default=None, description="Address of an S3 service other than Amazon's, e.g. https://s3.example.org."
    )
    artifacts_region: str | None = Field(default=None, description="Region of the bucket; unset: AWS_REGION decides.")
    downloads: Literal["stream", "nginx", "presigned"] = Field(
        default="stream",
        description="Who sends packages: this process (stream), nginx in front of it by X-Accel-Redirect (nginx), or "
        "the bucket by presigned links (presigned).",
    )
    nginx_location: str = Field(
        default="/artifacts/",
        pattern=r"^/[A-Za-z0-9._/-]*/$",
        description="Internal location of nginx whose alias is the folder artifacts in home.",
    )
    check_memory_hours: float = Field(
        default=24.0,
        ge=0,
        le=24 * 31,
        description="Hours for which a device that repeats its question is told `nothing new` without the database, as "
        "long as nothing changed. 0: never.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Token that Prometheus reads /metrics with; unset: there are none.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How `lamella serve` logs: text, or json with a line for each request."
    )
    traces: bool = Field(
        default=False, description="Send OpenTelemetry traces as the OTEL_* variables say (extra `otel`)."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address the API listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port the API listens on.")
    public_url: str = Field(
        default_factory=lambda data: f"http://127.0.0.1:{data['port']}",
        description="Where devices reach the API; written into enrolment files. Unset: http://127.0.0.1:<port>.",
    )
    gate_margin: float = Field(
        default=0.02,
        ge=0,
        allow_inf_nan=False,
        description="How much worse, in nats, a candidate's held-out loss may be than its parent's.",
    )
    gate_worst_group_margin: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="How much worse, in nats and beyond chance, it may be for any group of labelled text with enough "
        "people and examples. Unset: groups are told and decide nothing.",
    )
    release_max_epsilon: float = Field(
        default=10.0,
        gt=0,
        description="What the ε of a release's signed privacy statement may not exceed, in any unit; inf: only budgets "
        "count.",
    )
    require_audit: bool = Field(
        default=False,
        description="Release no run whose noise and clipping `lamella privacy audit` has not passed, for each unit "
        "that it protects. A failed audit always stops it.",
    )
    require_device_keys: bool = Field(
        default=False,
        description="Answer only devices that sign their requests; older agents show a credential.",
    )
    device_requests_per_minute: int = Field(
        default=600,
        ge=0,
        le=1_000_000,
        description="Requests of one device a minute, in each process of the API; 0: any number.",
    )
    login_attempts_per_minute: int = Field(
        default=6,
        ge=1,
        le=1_000_000,
        description="Failed logins a minute, of one address and of one name, after the first ten.",
    )
    session_hours: float = Field(
        default=12.0, gt=0, le=24 * 31, description="Hours after which the console asks for the password again."
    )
    enrolment_hours: float = Field(
        default=24.0, gt=0, le=24 * 366, description="Hours for which an enrolment token can be used."
    )
    offline_keys: Path = Field(
        default=Path("~/.lamella/offline-keys"),
        description="Folder of the keys of root, targets and releases, outside of home. The API never reads it.",
    )
    passphrase_file: Path | None = Field(
        default=None,
        description="File with the passphrase of the offline keys, mode 0600; unset: asked for at the terminal.",
    )
    root_expiry_days: int = Field(
        default=365, ge=1, le=3650, description="Days until root metadata expires; renewed with the offline keys."
    )
    targets_expiry_days: int = Field(
        default=365, ge=1, le=3650, description="Days until targets metadata expires; renewed with the offline keys."
    )
    releases_expiry_days: int = Field(
        default=180,
        ge=1,
        le=3650,
        description="Days until the signed list of releases expires; each release renews it.",
    )
    trust_warning_days: int = Field(
        default=30, ge=0, le=3650, description="Days before metadata of an offline key expires that the API warns."
    )
    signed_versions: int = Field(
        default=16, ge=1, le=10_000, description="Newest versions of a model that stay signed; older ones are retired."
    )
    keep_versions: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Newest versions of a model whose packages `lamella gc` keeps, besides those that a device may "
        "still need.",
    )
    grace_hours: float = Field(
        default=24.0,
        ge=0,
        le=24 * 366,
        description="Hours for which `lamella gc` and `lamella doctor` leave alone what nothing refers to: it may be "
        "in the making.",
    )
    deltas_expiry_days: int = Field(
        default=30, ge=1, le=3650, description="Days until the signed lists of packages expire."
    )
    snapshot_expiry_days: int = Field(
        default=14, ge=1, le=3650, description="Days until signed snapshot metadata expires."
    )
    timestamp_expiry_hours: int = Field(
        default=48,
        ge=1,
        le=24 * 365,
        description="Hours until the signed timestamp expires: how long a device can be kept from seeing news.",
    )

    ddi_poll_seconds: int = Field(
        default=300, ge=1, lt=86_400, description="Seconds after which a hawkBit client asks again."
    )
    ddi_files: Literal["both", "package", "swu"] = Field(
        default="both",
        description="What a hawkBit client is offered: the package, a SWUpdate image (.swu) around it, or both.",
    )
    ddi_install_folder: str = Field(
        default="/var/lib/lamella/incoming",
        pattern=r"^/[A-Za-z0-9._/-]{0,200}$",
        description="Folder on a device into which a .swu puts the package.",
    )
    ddi_signing_key: Path | None = Field(
        default=None, description="PEM file with the RSA or EC key that signs a .swu (CMS); unset: not signed."
    )
    ddi_signing_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate of that key, which SWUpdate is given with -k."
    )

    @field_validator(
        "passphrase_file",
        "artifacts_url",
        "artifacts_endpoint",
        "artifacts_region",
        "metrics_token",
        "ddi_signing_key",
        "ddi_signing_certificate",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, path: object) -> object:
        return None if path == "" else path

    @field_validator("home", "cache", "offline_keys")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("artifacts_endpoint")
    @classmethod
    def _is_endpoint(cls, url: str | None) -> str | None:
        return None if url is None else cls._is_http(url)

    @field_validator("public_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        _HTTP_URL.validate_python(url)
        return url.rstrip("/")

    @property
    def artifacts_dir(self) -> Path:
        """Where the artifact store keeps its files."""
        return self.home / "artifacts"

    @property
    def work_dir(self) -> Path:
        """Where publishing builds and checks packages; on the artifacts' disk, so that files can be linked."""
        return self.home / "work"

    @property
    def sqlalchemy_url(self) -> str:
        """The registry's URL with the driver spelled out; holds the password, so never print it."""
        url = self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home}/registry.sqlite"
        for short in ("postgresql://", "postgres://"):
            if url.startswith(short):
                return "postgresql+psycopg://" + url.removeprefix(short)
        return url


def unknown_settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like settings and are none, each with the setting that it is most like, if there is one."""
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    found = sorted(
        name for name in environment if name.startswith(_PREFIX) and name not in known and not name.startswith(_OTHERS)
    )
    return {name: next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in found}


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - pydantic parses them
    """Read the settings; ``overrides`` (a command's options) win over the environment.

    Raises:
        ConfigurationError: A setting does not parse; names the variable, not its value.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        faults = "; ".join(
            f"LAMELLA_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
            if fault["type"] != "default_factory_not_called"  # only echoes the fault before it
        )
        raise ConfigurationError(f"The settings do not fit: {faults}.") from None
