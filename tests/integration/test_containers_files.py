"""What can be said of docker/ without an engine: it parses, publishes no more than it should, and holds no secret."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What runs until it is done.
ONE_SHOT = {"keys", "setup"}
TARGETS = ("server", "superlink", "device", "gateway")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Name of each stage: what it is made from, and its instructions."""
    logical = re.sub(r"\\\n", " ", DOCKERFILE)
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (line.strip() for line in logical.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            current = match[2]
            found[current] = (match[1], [])
        elif line and not line.startswith("#"):
            found[current][1].append(line)
    return found


def lineage(target: str) -> list[str]:
    """Instructions of a target and of all it is made from, its own last."""
    parent, own = stages()[target]
    return (lineage(parent) if parent in stages() else []) + own


def last(target: str, instruction: str) -> str:
    return [line for line in lineage(target) if line.startswith(instruction + " ")][-1]


def test_only_the_two_base_images_are_used() -> None:
    names = stages()
    bases = {parent for parent, _ in names.values() if parent not in names}
    pulled = {service["image"] for service in SERVICES.values() if not service["image"].startswith("lamella-")}

    assert bases | pulled == {"python:3.11-slim-bookworm", "postgres:15-bookworm"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_fixed_user_that_is_not_root(target: str) -> None:
    assert last(target, "USER") == "USER 10001:10001"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_a_healthcheck_of_its_own(target: str) -> None:
    assert any(line.startswith("HEALTHCHECK ") for line in stages()[target][1])


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_installs_build_tools_or_keeps_a_package_cache(target: str) -> None:
    text = "\n".join(lineage(target))

    assert not re.search(r"\b(gcc|build-essential|git|curl|wget)\b", text)
    for line in lineage(target):
        if "pip " in line and " install " in line:
            assert "type=cache,target=/root/.cache/pip" in line or "--no-cache-dir" in line, line
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert "type=cache,target=/var/lib/apt/lists" in line


def test_dependencies_are_a_layer_that_source_does_not_invalidate() -> None:
    packages = "\n".join(lineage("server-packages"))

    assert packages.count("-c /build/constraints.txt") >= 2
    assert "COPY server" not in packages
    assert "COPY pyproject.toml" not in packages


def test_no_secret_is_in_the_dockerfile_or_the_compose_file() -> None:
    for text in (DOCKERFILE, (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")):
        assert "PRIVATE KEY" not in text
        assert not re.search(
            r"(?i)(password|passwd|token|secret|credential)\w*[ ]*[=:][ ]*[\"']?[A-Za-z0-9+]{6,}", text
        )
    assert not any(line.startswith(("ARG ", "ENV ")) and "TOKEN" in line.upper() for line in DOCKERFILE.splitlines())
    postgres = SERVICES["postgres"]["environment"]
    assert postgres["POSTGRES_PASSWORD_FILE"].startswith("/run/")
    assert "POSTGRES_PASSWORD" not in postgres


def test_no_default_password_and_none_in_the_url() -> None:
    for service in SERVICES.values():
        url = service.get("environment", {}).get("LAMELLA_DATABASE_URL", "postgresql://lamella@postgres/lamella")
        assert url == "postgresql://lamella@postgres/lamella"


def test_only_the_api_publishes_a_port_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}

    assert set(published) == {"api"}
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_superlink_and_database_are_reached_from_the_private_network_alone() -> None:
    assert SERVICES["superlink"]["networks"] == ["control"]
    assert SERVICES["postgres"]["networks"] == ["control"]
    assert COMPOSE["networks"]["control"]["internal"] is True
    assert {name for name, s in SERVICES.items() if "control" in s.get("networks", [])} == {
        "api",
        "gateway",
        "postgres",
        "setup",
        "superlink",
    }


def test_devices_are_on_the_fleet_network_alone_and_hold_no_server_volume() -> None:
    for name in ("supernode-1", "supernode-2", "agent"):
        assert SERVICES[name]["networks"] == ["fleet"]
        assert {volume.partition(":")[0] for volume in SERVICES[name]["volumes"]} == {f"{name}-home", f"{name}-kit"}


def test_the_superlink_asks_for_node_keys_and_tls_and_has_no_signing_keys() -> None:
    command = json.loads(re.sub(r"^CMD ", "", last("superlink", "CMD")))

    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert "--ssl-keyfile" in command
    assert "--insecure" not in command
    assert not any(volume.startswith(("signing-keys", "offline-")) for volume in SERVICES["superlink"]["volumes"])


def test_only_who_makes_and_who_uses_offline_keys_can_see_them() -> None:
    def services_with(name: str) -> set[str]:
        return {
            service
            for service, described in SERVICES.items()
            if any(volume.partition(":")[0] == name for volume in described["volumes"])
        }

    assert services_with("offline-keys") == services_with("offline-secret") == {"keys", "setup"}
    assert services_with("signing-keys") == {"keys", "api", "setup"}
    # Both run once and are gone; what runs on and is reached from outside holds online keys only.
    assert not {"keys", "setup"} - ONE_SHOT
    for name in ("keys", "setup"):
        environment = SERVICES[name]["environment"]
        mounted = {volume.split(":")[1] for volume in SERVICES[name]["volumes"]}
        assert environment["LAMELLA_OFFLINE_KEYS"] in mounted
        assert environment["LAMELLA_PASSPHRASE_FILE"].rpartition("/")[0] in mounted
        assert not environment["LAMELLA_OFFLINE_KEYS"].startswith("/var/lib/lamella")
    text = (ROOT / "docker" / "keys.sh").read_text(encoding="utf-8")
    assert "lamella trust init" in text
    assert "--unencrypted" not in text
    for folder in ("/run/offline/keys", "/run/offline/secret"):
        assert folder in "\n".join(lineage("server"))


def test_the_gateway_forwards_fleet_calls_and_nothing_else() -> None:
    text = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
    locations = dict(re.findall(r"location ([^{]+?) \{(.*?)\n        \}", text, flags=re.DOTALL))

    forwarding = [path for path, body in locations.items() if "proxy_pass" in body]
    assert forwarding == ["~ ^/v1/fleet/(?<call>[a-z-]+)$"]
    assert "return 404" in locations["/"]
    assert "proxy_ssl_verify on" in text
    assert not re.search(r"listen \d+;", text)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is (name != "postgres")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert not any(volume.startswith(("/", ".", "~")) for volume in service["volumes"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_watched_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}
        return
    assert service["restart"] == "unless-stopped"
    target = service["image"].removeprefix("lamella-")
    assert "test" in service.get("healthcheck", {}) or any(
        line.startswith("HEALTHCHECK ") for line in stages().get(target, ("", []))[1]
    )


def test_what_waits_waits_for_health_or_for_the_end() -> None:
    for service in SERVICES.values():
        for dependency, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if dependency in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}


def test_every_named_volume_exists_and_is_used() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}

    assert used == set(COMPOSE["volumes"])


def test_every_image_of_ours_is_a_target_and_is_built_once() -> None:
    built = {s["image"]: s["build"]["target"] for s in SERVICES.values() if "build" in s}

    assert built == {f"lamella-{target}": target for target in TARGETS}
    for service in SERVICES.values():
        if service["image"].startswith("lamella-"):
            assert service["image"] in built
            # A registry is never asked for a name of ours: somebody else could have taken it there.
            assert service["pull_policy"] == ("build" if "build" in service else "never")


def test_the_build_sees_no_more_than_it_needs() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line]
    allowed = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert {"**/*.key", "**/*.pem", "**/.*"} <= set(lines)
    copied = {
        source
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    }
    assert {source.split("/")[0] for source in copied} <= allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("script", ["keys.sh", "setup.sh", "device.sh"])
def test_scripts_parse_and_stop_at_the_first_error(script: str) -> None:
    path = ROOT / "docker" / script

    subprocess.run(["sh", "-n", str(path)], check=True)
    assert "\nset -eu\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("extra", ["federated", "demo"])
def test_requirements_of_an_extra_are_unfolded(extra: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker" / "requirements.py"), extra],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()

    assert "torch==2.13.0" in lines
    assert any(line.startswith("numpy") for line in lines)
    assert not any(line.startswith("lamella") for line in lines)
    assert any(line.startswith("fastapi") for line in lines) == (extra == "demo")


def test_readme_names_every_service_and_every_volume_with_a_secret() -> None:
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")

    for name in (
        *SERVICES,
        "database-secret",
        "authority",
        "signing-keys",
        "offline-keys",
        "offline-secret",
        "server-home",
        "superlink-tls",
        "gateway-tls",
    ):
        assert f"`{name}`" in text, name
