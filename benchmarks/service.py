"""What a fleet that polls costs: the update service on PostgreSQL, beside the least that FastAPI can answer.

    python benchmarks/service.py                        # 100,000 devices, 20 s for each number
    python benchmarks/service.py --devices 2000 --seconds 2

Two uvicorn workers and a PostgreSQL on this machine; the generator (`http_load.py`) is a process of its own and shares
the cores with them, so requests per second are a lower bound and CPU seconds the better number. Each kind of request
runs for a tenth of the time unmeasured, then as fast as it goes, and then at half of that, for the 99th percentile:

* hello: a bare FastAPI app with the same two workers;
* unchanged: a device repeats its question and nothing changed (304, no database);
* nothing new: a device that was here yesterday and runs the newest version (204);
* a day of hourly questions: 23 repeated ones and one in full, as a device asks that is told nothing new all day;
* another version: a device that runs another version than it told before (204, and that is written);
* offer: a device one version behind (200, and the offer is written);
* report: an outcome (204); each is new once and repeated after that;
* download: the small package.
"""

import argparse
import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
# The home, PostgreSQL and processes are those of the tests.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from simulators.postgresql import WHY_SKIPPED, find_pg_bin, running_postgres  # noqa: E402 - from the tests
from simulators.server_home import MODEL, Home, open_home  # noqa: E402
from simulators.service_process import free_port, running_process  # noqa: E402
from sqlalchemy import insert  # noqa: E402

from delta_updates import Outcome  # noqa: E402
from server.registry.tables import DeviceRow  # noqa: E402

SECRET = "s" * 43
CHECK, REPORT = "/v1/updates/check", "/v1/updates/report"
PREPARED = 1000
WORKERS = 2
CONNECTIONS = 32


def credential(number: int) -> str:
    """Of the made-up device of that number."""
    return f"{number:032x}.{SECRET}"


def enrol_fleet(home: Home, devices: int) -> None:
    """Rows of devices, as if they had enrolled: each with its own id, all with one secret, and seen yesterday.

    Every third runs the newest version, every third the one before, and every third has told nothing yet.
    """
    hashed = hashlib.sha256(SECRET.encode()).hexdigest()
    versions = [(version.number, version.manifest.tree_hash) for version in home.registry.versions(MODEL)]
    told = [versions[-1], versions[-2], (None, None)]
    with home.registry.engine.begin() as connection:
        for start in range(0, devices, 10_000):
            rows = [
                {
                    "device_id": f"{number:032x}",
                    "name": f"device-{number}",
                    "model": MODEL,
                    "credential_sha256": hashed,
                    "enrolled_at": datetime.now(UTC) - timedelta(days=2),
                    "last_seen_at": datetime.now(UTC) - timedelta(days=1),
                    "installed_version": told[number % 3][0],
                    "installed_hash": told[number % 3][1],
                }
                for number in range(start, min(devices, start + 10_000))
            ]
            connection.execute(insert(DeviceRow), rows)


def raw(method: str, path: str, number: int, body: object = None, **headers: str) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {credential(number)}"]
    lines += ["content-type: application/json", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def ask(port: int, numbers: range, body: object, note: Callable[[int, http.client.HTTPResponse, bytes], None]) -> None:
    """Ask for updates in the name of some devices, one after another."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in numbers:
        headers = {"authorization": f"Bearer {credential(number)}", "content-type": "application/json"}
        connection.request("POST", CHECK, json.dumps(body), headers)
        answer = connection.getresponse()
        note(number, answer, answer.read())
    connection.close()


def workloads(home: Home, port: int, devices: int) -> dict[str, list[bytes]]:
    """The requests of each kind."""
    versions = {version.number: version.manifest.tree_hash for version in home.registry.versions(MODEL)}
    newest, before = max(versions), max(versions) - 1
    current = {"model": MODEL, "installed_version": newest, "installed_hash": versions[newest]}
    behind = {"model": MODEL, "installed_version": before, "installed_hash": versions[before]}
    etags: dict[int, str] = {}
    offers: dict[int, dict[str, Any]] = {}
    few = range(min(PREPARED, devices))
    ask(port, few, current, lambda number, answer, _: etags.update({number: answer.headers["etag"]}))
    ask(port, few, behind, lambda number, _, content: offers.update({number: json.loads(content)}))
    reports = [
        raw("POST", REPORT, number, {"offer_id": offer["offer_id"], "version": newest, "outcome": outcome.value})
        for outcome in Outcome
        for number, offer in offers.items()
    ]
    package = f"/v1/targets/{offers[0]['package']['path']}"
    # The first devices are those that were asked for above: what is left has not been seen yet.
    unseen = range(len(few), devices) if devices > len(few) else few
    thirds = [[number for number in unseen if number % 3 == third] for third in range(3)]
    unchanged = [raw("POST", CHECK, n, current, if_none_match=etags[n]) for n in few]
    in_full = [raw("POST", CHECK, n, current) for n in thirds[0]]
    return {
        "unchanged (304)": unchanged,
        "nothing new (204)": in_full,
        "a day of hourly questions": list(days(in_full, unchanged)),
        "another version (204)": [raw("POST", CHECK, n, current) for n in thirds[2]],
        "offer (200)": [raw("POST", CHECK, n, behind) for n in thirds[1]],
        "report (204)": reports,
        "download": [raw("GET", package, n) for n in few],
    }


def days(in_full: list[bytes], unchanged: list[bytes]) -> Iterator[bytes]:
    """A question in full, then those of 23 hours that repeat one; the last devices: they were not asked yet."""
    repeated = cycle(unchanged)
    for request in in_full[-5_000:]:  # as many as are asked in the time
        yield request
        yield from islice(repeated, 23)


@contextmanager
def workers(app: list[str], *, path: str, environment: dict[str, str]) -> Iterator[tuple[int, psutil.Process]]:
    """Uvicorn with its workers; port and process."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", *app, "--port", str(port), "--workers", str(WORKERS)]
    own = psutil.Process()
    before = set(own.children())
    with running_process(
        [*command, "--log-level", "error", "--no-access-log"],
        address=f"http://127.0.0.1:{port}",
        path=path,
        environment=environment,
    ):
        (process,) = set(own.children()) - before
        yield port, process


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and all below it."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def measure(port: int, requests: list[bytes], process: psutil.Process, *, seconds: float) -> dict[str, Any]:
    """As fast as it goes, and then at half of that."""
    with tempfile.NamedTemporaryFile("wb", suffix=".requests") as file:
        file.write(b"\n".join(base64.b64encode(request) for request in requests))
        file.flush()
        generate(port, file.name, seconds=max(1.0, seconds / 10), rate=0.0)
        used = cpu_seconds(process)
        found = generate(port, file.name, seconds=seconds, rate=0.0)
        used = cpu_seconds(process) - used
        calm = generate(port, file.name, seconds=seconds, rate=found["per_second"] / 2)
    cpu_ms = used / found["requests"] * 1000
    return found | {"cpu_ms": cpu_ms, "half_p99_ms": calm["p99_ms"], "half_statuses": calm["statuses"]}


def generate(port: int, file: str, *, seconds: float, rate: float) -> dict[str, Any]:
    """Run the generator."""
    command = [sys.executable, str(ROOT / "benchmarks" / "http_load.py"), str(port), file]
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--rate", str(rate), "--connections", str(CONNECTIONS)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(rows: dict[str, dict[str, Any]]) -> None:
    """A table."""
    hello = rows["hello"]["cpu_ms"]
    columns = ("request", "requests/s", "p50 ms", "p99 ms", "p99 ms at half", "CPU ms", "of hello", "CPU s/h for 1,000")
    print(f"| {' | '.join((*columns, 'statuses'))} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['per_second']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['half_p99_ms']:.1f} | {row['cpu_ms']:.2f} | {row['cpu_ms'] / hello:.1f} | {row['cpu_ms']:.2f} | "
            f"{row['statuses']} |"
        )


def main() -> None:
    """Set everything up, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    pg_bin = find_pg_bin()
    if pg_bin is None:
        sys.exit(WHY_SKIPPED)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, running_postgres(pg_bin) as postgres:
        url = postgres.new_url()
        home = open_home(Path(folder), database_url=url)
        home.release_three()
        enrol_fleet(home, options.devices)
        environment = {"LAMELLA_HOME": str(home.settings.home), "LAMELLA_DATABASE_URL": url}
        here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
        with workers(["hello_app:app"], path="/none", environment=here) as (port, process):
            hello = [b"POST /hello HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n"]
            rows["hello"] = measure(port, hello, process, seconds=options.seconds)
        api = ["--factory", "server.api:create_app"]
        with workers(api, path="/v1/readyz", environment=environment | here) as (port, process):
            for name, requests in workloads(home, port, options.devices).items():
                rows[name] = measure(port, requests, process, seconds=options.seconds)
        home.registry.close()
    show(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
