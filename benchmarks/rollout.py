"""How far a version gets before a rollout stops it: 100,000 simulated devices, moved by the service's own rules.

    python benchmarks/rollout.py [--devices 100000] [--json]

The fleet is `tests/simulators/rollout_fleet.py`: most devices ask every hour, one in ten every three days. A release
without a rollout, for comparison, reaches each device at its next check.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    """Simulate each scenario and print a table, or JSON."""
    from simulators.rollout_fleet import Version, simulate  # noqa: PLC0415 - from the tests

    from server.rollouts import AT_ONCE, Launch, parse_plan  # noqa: PLC0415 - beside it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    limit = {"metric": "tokens_per_second", "limit": 10}
    plan = parse_plan(phases=(1, 10, 50, 100), soak_hours=4, min_reports=200, quality=(limit,))
    staged = Launch(plan=plan, state="running")
    rows = []
    for name, version, launch in (
        ("good: 0.2% of downloads fail once", Version(), staged),
        ("every device reverts", Version(reverts=1.0), staged),
        ("a fifth of the devices reverts", Version(reverts=0.2), staged),
        ("one device in eight reverts", Version(reverts=0.125), staged),
        ("7% revert: between the thresholds", Version(reverts=0.07), staged),
        ("good, but at 8 instead of 12 tokens/s", Version(tokens_per_second=8.0), staged),
        ("every device reverts, released at once", Version(reverts=1.0), AT_ONCE),
    ):
        begun = time.monotonic()
        result = simulate(version, launch, devices=options.devices, days=2)
        rows.append(
            {
                "version": name,
                "state": result.rollout.state,
                "phase": f"{result.rollout.percentage:g}%",
                "hours": round(result.minutes / 60, 1),
                "offered": result.offered,
                "confirmed": result.confirmed,
                "reverted": result.reverted,
                "reason": result.rollout.reason,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print("| version | ends | in phase | after | offered to | confirmed | reverted |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['version']} | {row['state']} | {row['phase']} | {row['hours']:g} h | {row['offered']:,} "
            f"| {row['confirmed']:,} | {row['reverted']:,} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
