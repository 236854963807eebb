"""Measure what a secure sum costs each device and the server, beside a plain sum and Flower's SecAgg+ arithmetic.

    python benchmarks/secure_sum.py [--devices 100,1000] [--parameters 2400000] [--silent 0.05] [--json]

Keys, shares and envelopes are made by every device of the cohort, and each says its part. Vectors are masked by three
devices, whose mean time is shown; the others send zeros, because what the server does with a vector does not depend on
what is in it. So with 1,000 devices the sum that comes out is not looked at; with --check it is: every device masks a
vector, and the sum must be exact. The silent ones fall silent after they have shared their keys, which is the dearest
time. Bytes are those of the messages as they are sent, without what Flower wraps around them.

Plain: float32 updates added up. Flower: its own functions for one pair's mask and for quantization, times the number of
masks; its masks come from a generator with a 32-bit seed (flwrlabs/flower#7522), so it is a measure of cost alone.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from privacy.randomness import SystemRandom
from privacy.secure_aggregation import Coordinator, MaskedVector, Member, RoundPlan, neighbours_needed
from privacy.secure_aggregation.quantization import Quantization, wrapped
from privacy.skellam import skellam_noise

_SAMPLE = 3
_NOISE_STDDEV = 65_536.0


@dataclass
class Cost:
    """What one cohort's round cost; seconds of CPU, bytes of messages."""

    devices: int
    parameters: int
    neighbours: int
    threshold: int
    silent: int
    device_keys_s: float = 0.0
    device_quantize_s: float = 0.0
    device_noise_s: float = 0.0
    device_masks_s: float = 0.0
    device_sends_bytes: int = 0
    device_receives_bytes: int = 0
    plain_sends_bytes: int = 0
    server_s: float = 0.0
    server_peak_mb: float = 0.0
    plain_server_s: float = 0.0
    flower_device_s: float = 0.0
    is_exact: bool | None = None


def main() -> None:
    """Measure each cohort and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="100,1000")
    parser.add_argument("--parameters", type=int, default=2_400_000)
    parser.add_argument("--silent", type=float, default=0.05)
    parser.add_argument("--check", action="store_true", help="every device masks a vector; the sum must be exact")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    costs = []
    for count in map(int, options.devices.split(",")):
        print(f"{count} devices ...", file=sys.stderr)
        costs.append(measure(count, options.parameters, options.silent, has_check=options.check))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
        return
    print(table(costs))


def measure(count: int, length: int, silent_share: float, *, has_check: bool) -> Cost:
    """One round of a cohort."""
    neighbours, threshold = neighbours_needed(count, dropouts=silent_share, colluding=0.05)
    plan = RoundPlan(run_id="benchmark", server_round=1, length=length, neighbours=neighbours, threshold=threshold)
    silent = set(range(1, round(silent_share * count) + 1))
    cost = Cost(count, length, neighbours, threshold, len(silent))
    random = np.random.default_rng(0)
    vector = random.standard_normal(length).astype(np.float32)
    form = Quantization(clipping_norm=float(np.linalg.norm(vector)), levels=(1 << 30) // count, length=length)
    whole = quantized(form, vector, cost)
    variance = _NOISE_STDDEV**2 / (count - len(silent))
    cost.device_noise_s = seconds(lambda: skellam_noise(length, variance=variance, random=SystemRandom()))
    round_(plan, silent, whole, cost, has_check=has_check)
    beside_plain(vector, count - len(silent), cost)
    beside_flower(vector, neighbours, cost)
    cost.server_peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return cost


def quantized(form: Quantization, vector: np.ndarray, cost: Cost) -> np.ndarray:
    """The vector in whole numbers, and how long that took."""
    begin = time.process_time()
    whole = wrapped(form.quantized(vector, SystemRandom()))
    cost.device_quantize_s = time.process_time() - begin
    return whole


def round_(plan: RoundPlan, silent: set[int], whole: np.ndarray, cost: Cost, *, has_check: bool) -> None:
    """The four exchanges; every device's keys, some devices' masks, all of the server's work."""
    count = cost.devices
    coordinator = Coordinator(plan)
    begin = time.process_time()
    members = {number: Member(plan, number) for number in range(1, count + 1)}
    advertised = [member.advertise() for member in members.values()]
    device = time.process_time() - begin
    server = 0.0
    begin = time.process_time()
    introduced = coordinator.introduce(advertised)
    server += time.process_time() - begin
    begin = time.process_time()
    sent = [members[number].share(introduced[number]) for number in members]
    device += time.process_time() - begin
    begin = time.process_time()
    delivered = coordinator.deliver(sent)
    server += time.process_time() - begin
    cost.device_keys_s = device / count
    masking, zeros, masked_bytes = [], np.zeros(plan.length, dtype=np.uint32), 4 * plan.length
    for number, member in members.items():
        if number in silent:
            continue
        is_sampled = has_check or len(masking) < _SAMPLE
        begin = time.process_time()
        member.open(delivered[number])
        # Of the others nothing but zeros is sent, and they reveal their shares below all the same.
        values = member.mask(whole).values if is_sampled else skip_masks(member, zeros)
        if is_sampled:
            masking.append(time.process_time() - begin)
        begin = time.process_time()
        coordinator.add(MaskedVector(number, values))
        server += time.process_time() - begin
    cost.device_masks_s = sum(masking) / len(masking)
    asked = coordinator.ask()
    shares = [members[number].reveal(asked[number]) for number in asked]
    begin = time.process_time()
    for one in shares:
        coordinator.hear(one)
    total = coordinator.total()
    cost.server_s = server + time.process_time() - begin
    if has_check:
        cost.is_exact = bool((total == np.uint32(len(asked)) * whole).all())
    first = next(iter(asked))
    index = first - 1
    cost.device_sends_bytes = masked_bytes + sum(
        len(message.model_dump_json()) for message in (advertised[index], sent[index], shares[0])
    )
    cost.device_receives_bytes = sum(
        len(message.model_dump_json()) for message in (introduced[first], delivered[first], asked[first])
    )
    cost.plain_sends_bytes = masked_bytes


def skip_masks(member: Member, zeros: np.ndarray) -> np.ndarray:
    """Zeros in the place of a masked vector."""
    member._next = "reveal"  # noqa: SLF001 - benchmarks may look inside
    return zeros


def beside_plain(vector: np.ndarray, count: int, cost: Cost) -> None:
    """The same number of float32 updates added up."""
    total = np.zeros(vector.size, dtype=np.float64)
    begin = time.process_time()
    for _ in range(count):
        total += vector
    cost.plain_server_s = time.process_time() - begin


def beside_flower(vector: np.ndarray, neighbours: int, cost: Cost) -> None:
    """Flower's arithmetic for one device: quantize once, a mask a neighbour and one of its own."""
    begin = time.process_time()
    whole = quantize([vector], 8.0, 1 << 22)
    quantizing = time.process_time() - begin
    begin = time.process_time()
    parameters_addition(whole, pseudo_rand_gen(b"seed" * 8, 1 << 32, [vector.shape]))
    cost.flower_device_s = quantizing + (neighbours + 1) * (time.process_time() - begin)


def seconds(work: object) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def table(costs: list[Cost]) -> str:
    """The costs as a Markdown table."""
    lines = [
        (
            "| devices | neighbours (threshold) | silent | device: keys, rounding, noise, masks s | Flower's masks | "
            "device sends (plain) MB | receives KB | server s (plain) | exact |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in costs:
        device = c.device_quantize_s + c.device_masks_s
        lines.append(
            f"| {c.devices} | {c.neighbours} ({c.threshold}) | {c.silent} | {c.device_keys_s:.3f}, "
            f"{c.device_quantize_s:.2f}, {c.device_noise_s:.2f}, {c.device_masks_s:.2f} | "
            f"{c.flower_device_s:.1f} s, {c.flower_device_s / device:.1f} x | "
            f"{c.device_sends_bytes / 1e6:.2f} ({c.plain_sends_bytes / 1e6:.2f}) | "
            f"{c.device_receives_bytes / 1e3:.0f} | "
            f"{c.server_s:.1f} ({c.plain_server_s:.1f}) | {'-' if c.is_exact is None else c.is_exact} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
