"""A generator of HTTP load, in a process of its own: keep-alive connections that send prepared requests.

    python benchmarks/http_load.py PORT REQUESTS --connections 16 --seconds 10 [--rate 500]

REQUESTS has one request a line, in base64; they are sent in turn. With a rate, a request's time counts from when it was
due, so that a service that stands still is not spared (coordinated omission). Prints JSON.
"""

import argparse
import asyncio
import base64
import itertools
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request and read its answer to the end; returns the status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if found := _LENGTH.search(head):
        await reader.readexactly(int(found[1]))
    return int(head[9:12])


async def connection(
    port: int, requests: Iterator[bytes], due: Iterator[float], until: float, times: list[float], seen: Counter[int]
) -> None:
    """Send requests one after another until the time is up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = next(due)
        if start >= until:
            break
        if (wait := start - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        begun = start or time.perf_counter()
        seen[await exchange(reader, writer, next(requests))] += 1
        times.append(time.perf_counter() - begun)
    writer.close()


async def load(port: int, requests: list[bytes], *, connections: int, seconds: float, rate: float) -> dict[str, object]:
    """Run all connections; what came back, and how fast."""
    times: list[float] = []
    seen: Counter[int] = Counter()
    start = time.perf_counter()
    shared = itertools.cycle(requests)
    due = (start + number / rate for number in itertools.count()) if rate else itertools.repeat(0.0)
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection(port, shared, due, start + seconds, times, seen))
    took = time.perf_counter() - start
    cuts = statistics.quantiles(times, n=100)
    return {
        "requests": len(times),
        "per_second": len(times) / took,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "statuses": {str(status): count for status, count in sorted(seen.items())},
    }


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: as many as there can be")
    options = parser.parse_args()
    requests = [base64.b64decode(line) for line in options.requests.read_text().split()]
    found = asyncio.run(
        load(
            options.port,
            requests,
            connections=options.connections,
            seconds=options.seconds,
            rate=options.rate,
        )
    )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
