"""The product's promise, measured: what an update of a language model costs a device.

    python benchmarks/ota.py --adapters V2 V3

V2 and V3 are folders of adapters for SmolLM2-135M, as two releases in a row. A real update service releases the base as
v1 and the adapters as v2 and v3, and real devices go from v2 to v3:

* three device processes, behind networks of 3, 10 and 50 Mbit/s: bytes on the wire (everything the network carried),
  seconds until the new version is in its slot and checked, memory and disk;
* beside it the full package on the same network, and what the best other tool would send for the same two versions;
* `--devices` simulated devices (real client code, a tiny model, no self-test) while one in twenty answers is spoiled:
  cut, reset, truncated, one bit flipped, a log-in page, or an error 503.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The operator and the network are those of the tests: real processes, and a proxy.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from delta_peers import available_peers  # noqa: E402 - beside this file

MBITS = (3, 10, 50)
FAULTS = 0.05
_WORKERS = 16


def main() -> int:
    """Measure and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, nargs=2, required=True, help="adapters of two releases in a row")
    parser.add_argument("--devices", type=int, default=1000, help="simulated devices")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        figures = {
            "real": _real_devices(options.adapters, Path(folder)),
            "peers": _peers(options.adapters),
            "fleet": _fleet(options.devices, Path(folder) / "fleet"),
        }
    _show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 0


# --- real devices


def _real_devices(adapters: list[Path], folder: Path) -> list[dict[str, Any]]:
    from simulators.operator import Service  # noqa: PLC0415 - seconds of torch, after --help

    service = _operator(Service, folder / "home")
    service.lamella("base", "import", "--smollm2", "--model", "chat")
    _release(service, adapters[0])
    service.serve()
    homes = {}
    for mbits in MBITS:
        homes[mbits] = folder / f"device-{mbits}"
        service.enroll(homes[mbits])
        _update(service, homes[mbits], None)
        _say(f"a device for {mbits} Mbit/s runs v2")
    _release(service, adapters[1])
    rows = []
    for mbits, home in homes.items():
        row = {"mbits": mbits, **_update(service, home, mbits)}
        fresh = folder / f"fresh-{mbits}"
        service.enroll(fresh)
        row["full"] = _update(service, fresh, mbits) if mbits != MBITS[0] else None
        shutil.rmtree(fresh)
        rows.append(row)
        _say(f"{mbits} Mbit/s: {row['to_switch_seconds']:.2f} s")
    service.close()
    return rows


def _operator(service_class: type, home: Path) -> Any:  # noqa: ANN401 - imported after --help
    service = service_class(home)
    service.init_trust()
    return service


def _release(service: Any, adapter: Path) -> None:  # noqa: ANN401 - as above
    service.release(adapter)
    _say(f"{adapter.name} is released")


def _update(service: Any, home: Path, mbits: float | None) -> dict[str, Any]:  # noqa: ANN401 - as above
    """One update of one device process, behind a network of this speed."""
    from simulators.network import Network, Weather  # noqa: PLC0415 - from the tests

    weather = Weather(bytes_per_s=None if mbits is None else mbits * 1e6 / 8, latency_s=0.0 if mbits is None else 0.02)
    with Network(f"http://127.0.0.1:{service.port}", weather).running() as network:
        _point_at(home, network.address)
        with subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "ota_device.py"), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "10000"},
        ) as device:
            assert device.stdin is not None  # noqa: S101 - for the type checker: pipes
            assert device.stdout is not None  # noqa: S101 - as above
            device.stdout.readline()
            device.stdin.write("update\n")
            device.stdin.flush()
            found: dict[str, Any] = json.loads(device.stdout.readline())
        if found["decision"] != "confirmed":
            raise SystemExit(f"the update did not work: {found}")
        return found | {"wire_bytes": network.bytes_sent}


def _point_at(home: Path, address: str) -> None:
    """Let a device reach its service through another address."""
    path = home / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"server_url": address}))


# --- other tools


def _peers(adapters: list[Path]) -> dict[str, int]:
    """What others send for the file that changed; a tool that takes slices only is left out."""
    old, new = ((folder / "adapter_model.safetensors").read_bytes() for folder in adapters)
    sizes = {}
    for peer in available_peers():
        if len(new) <= peer.max_bytes:
            sizes[peer.name] = len(peer.build(old, new))
    return sizes


# --- a fleet


def _fleet(count: int, folder: Path) -> dict[str, Any]:
    from simulators.network import Network, Weather  # noqa: PLC0415 - from the tests
    from simulators.operator import Service  # noqa: PLC0415 - as above

    from client_sdk import Device  # noqa: PLC0415 - as above

    folder.mkdir()
    service = _operator(Service, folder / "home")
    service.lamella("base", "pretrain", "--model", "chat", "--steps", "5")
    service.release_adapter(seed=1)
    service.serve()
    first = folder / "first"
    service.enroll(first)
    Device(first, test_version=lambda _tree, _manifest: None).update()
    address = f"http://127.0.0.1:{service.port}"
    with ThreadPoolExecutor(_WORKERS) as pool:
        homes = list(pool.map(lambda n: _clone(first, folder / f"d{n}", service, address), range(count)))
    _say(f"{count} devices run v2")
    service.release_adapter(seed=2)
    polls: Counter[int] = Counter()
    with Network(address, Weather(fault=FAULTS), seed=1).running() as network:
        for home in homes:
            _point_at(home, network.address)
        started = time.perf_counter()
        with ThreadPoolExecutor(_WORKERS) as pool:
            outcomes = list(pool.map(_poll_until_done, homes))
        seconds = time.perf_counter() - started
        accidents = Counter(network.accidents)
        wire = network.bytes_sent
    for number, _ in outcomes:
        polls[number] += 1
    service.close()
    return {
        "devices": count,
        "seconds": seconds,
        "after_one_poll": polls[1] / count,
        "after_two_polls": (polls[1] + polls[2]) / count,
        "whole_and_new": sum(is_right for _, is_right in outcomes) / count,
        "wire_bytes_per_device": wire / count,
        "accidents": dict(accidents),
    }


def _clone(first: Path, home: Path, service: Any, address: str) -> Path:  # noqa: ANN401 - as above
    """Another device on the same version: its own enrolment, the files as links."""
    from client_sdk import Device  # noqa: PLC0415 - as above

    token = (service.home / "operator.token").read_text().strip()
    request = urllib.request.Request(  # noqa: S310 - our own service
        f"{address}/v1/operator/enrolment-tokens",
        data=json.dumps({"model": "chat"}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
        invitation = home.with_suffix(".json")
        invitation.write_text(json.dumps(json.load(answer)["file"]))
    Device(home).enroll(invitation, name=home.name)
    shutil.copytree(first / "slots", home / "slots", copy_function=os.link)
    (home / "slots" / "active.json").unlink()
    shutil.copy2(first / "slots" / "active.json", home / "slots" / "active.json")
    return home


def _poll_until_done(home: Path) -> tuple[int, bool]:
    """How many polls it took to reach v3, and whether a whole v3 serves then."""
    from client_sdk import Device, DeviceError, Limits  # noqa: PLC0415 - as above
    from delta_updates import DeltaError, verify_tree  # noqa: PLC0415 - as above

    limits = Limits(backoff_base_s=0.05, backoff_cap_s=1.0)
    device = Device(home, limits=limits, test_version=lambda _tree, _manifest: None)
    for poll in range(1, 11):
        try:
            device.update()
        except DeviceError:
            continue
        active = device.active()
        if active.manifest.version == 3:  # noqa: PLR2004 - the release
            try:
                verify_tree(active.tree, active.manifest.files)
            except DeltaError:
                return poll, False
            return poll, True
    return 10, False


# --- words


def _show(figures: dict[str, Any]) -> None:
    rows, peers, fleet = figures["real"], figures["peers"], figures["fleet"]
    full = next(row["full"] for row in rows if row["full"])
    print(f"\nfull package {full['package_bytes'] / 1e6:.2f} MB")
    print(
        "| network | package | of the full package | on the wire | check, download, apply | self-test | full package |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        whole = f"{row['full']['to_switch_seconds']:.1f} s" if row["full"] else "-"
        share, wire = row["package_bytes"] / full["package_bytes"], row["wire_bytes"] / 1e6
        print(
            f"| {row['mbits']} Mbit/s | {row['package_bytes'] / 1e6:.3f} MB | {share:.3%} | {wire:.3f} MB "
            f"| {row['to_switch_seconds']:.2f} s ({row['download_seconds']:.2f} + {row['apply_seconds']:.2f}) "
            f"| {row['self_test_seconds']:.1f} s | {whole} |"
        )
    memory = statistics.median(row["peak_memory_bytes"] - row["memory_before_bytes"] for row in rows)
    disk = statistics.median(row["peak_disk_bytes"] - row["disk_before_bytes"] for row in rows)
    print(f"\nmemory above the waiting process {memory / 1e6:.0f} MB")
    print(f"disk above the version that serves {disk / 1e6:.1f} MB")
    best = min(peers, key=lambda name: peers[name])
    print(f"best other tool for the file that changed: {best}, {peers[best] / 1e6:.3f} MB")
    print(
        f"{fleet['devices']} devices, one answer in twenty spoiled ({fleet['accidents']}): "
        f"{fleet['after_one_poll']:.1%} updated at the first poll, {fleet['after_two_polls']:.1%} by the second, "
        f"{fleet['whole_and_new']:.1%} in the end; {fleet['wire_bytes_per_device'] / 1e3:.0f} kB a device, "
        f"{fleet['seconds']:.0f} s in all"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
