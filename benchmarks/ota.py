"""The product's promise, measured: what an update of a language model costs a device.

    python benchmarks/tuned.py BASE OUT lora
    python benchmarks/ota.py --factors OUT/adapter-40.F32 OUT/adapter-45.F32

The factors are an adapter (r = 8 on all linears) for SmolLM2-135M at two moments of its training. A real update service
releases the base and, for each format, the two as releases in a row; real devices go from one to the next:

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

from model.quantized_adapter import load_quantized_adapter  # noqa: E402 - no torch in it

MBITS = (3, 10, 50)
FAULTS = 0.05
MODEL_BYTES = 269_058_128  # SmolLM2-135M in fp16, the file that others would ship
_WORKERS = 16


def main() -> int:
    """Measure and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=Path, nargs=2, required=True, help="factors of two moments, from tuned.py")
    parser.add_argument("--formats", default="float16,int8,int4", help="what releases hold the adapter in")
    parser.add_argument("--devices", type=int, default=1000, help="simulated devices; 0 for none")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        work = Path(folder)
        releases = {form: _write_adapters(options.factors, form, work) for form in options.formats.split(",")}
        figures = {
            "peers": {form: _peers(pair) for form, pair in releases.items()},
            "real": _real_devices(releases, work),
            "fleet": _fleet(options.devices, work / "fleet") if options.devices else None,
        }
    _show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 0


def _write_adapters(factors: list[Path], form: str, work: Path) -> list[Path]:
    """The two moments as releases hold them, the second rounded onto the first one's scales where they fit."""
    from safetensors.numpy import load_file  # noqa: PLC0415 - seconds of torch, after --help

    from model import PROJECTIONS, LoRAConfig  # noqa: PLC0415 - as above
    from server.federation.adapter import ParentRelease, write_release  # noqa: PLC0415 - as above

    lora = LoRAConfig(rank=8, alpha=16.0, targets=PROJECTIONS)
    folders: list[Path] = []
    parent = None
    for path in factors:
        folders.append(work / f"{path.stem}-{form}")
        write_release(folders[-1], load_file(path), lora, form=form, parent=parent)  # type: ignore[arg-type]
        quantized = None if form == "float16" else load_quantized_adapter(folders[-1])
        parent = ParentRelease({}, quantized, {})
    return folders


# --- real devices


def _real_devices(releases: dict[str, list[Path]], folder: Path) -> list[dict[str, Any]]:
    from simulators.operator import Service  # noqa: PLC0415 - seconds of torch, after --help

    service = _operator(Service, folder / "home")
    service.lamella("base", "import", "--smollm2", "--model", "chat")
    service.serve()
    homes = {mbits: folder / f"device-{mbits}" for mbits in MBITS}
    for home in homes.values():
        service.enroll(home)
    rows = []
    for form, (before, after) in releases.items():
        _release(service, before)
        for home in homes.values():
            _update(service, home, None)
        _release(service, after)
        for mbits, home in homes.items():
            rows.append({"format": form, "mbits": mbits, **_update(service, home, mbits)})
            _say(f"{form} at {mbits} Mbit/s: {rows[-1]['to_switch_seconds']:.2f} s")
    fresh = folder / "fresh"
    service.enroll(fresh)
    rows.append({"format": "full package", "mbits": MBITS[-1], **_update(service, fresh, MBITS[-1])})
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
    pointer = json.loads((first / "slots" / "active.json").read_text())
    state = json.loads((home / "state.json").read_text())
    # What the first device reported is not reported again by each of its copies.
    state["confirmed_offer_id"] = pointer["confirmed"]["offer_id"]
    (home / "state.json").write_text(json.dumps(state))
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
    *rows, full = figures["real"]
    print(
        "\n| adapter in | network | package | of the fp16 model | on the wire | seconds (of it download, apply) "
        "| self-test |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in (*rows, full):
        print(
            f"| {row['format']} | {row['mbits']} Mbit/s | {row['package_bytes'] / 1e6:.3f} MB "
            f"| {row['package_bytes'] / MODEL_BYTES:.3%} | {row['wire_bytes'] / 1e6:.3f} MB "
            f"| {row['to_switch_seconds']:.2f} ({row['download_seconds']:.2f} + {row['apply_seconds']:.2f}) "
            f"| {row['self_test_seconds']:.1f} s |"
        )
    memory = statistics.median(row["peak_memory_bytes"] - row["memory_before_bytes"] for row in rows)
    disk = statistics.median(row["peak_disk_bytes"] - row["disk_before_bytes"] for row in rows)
    print(f"\nmemory above the waiting process {memory / 1e6:.0f} MB")
    print(f"disk above the versions that were there {disk / 1e6:.1f} MB")
    for form, sizes in figures["peers"].items():
        best = min(sizes, key=lambda name: sizes[name])
        print(f"best other tool for the {form} file: {best}, {sizes[best] / 1e6:.3f} MB")
    if fleet := figures["fleet"]:
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
