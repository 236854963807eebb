"""A throw-away S3: moto's server in a process of its own, with a bucket for each test."""

import os
import shutil
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulators.service_process import free_port, running_process

# Not in our own environment: what its SDK needs does not fit beside ours.
_BESIDE = Path(__file__).parents[2] / ".tools" / "moto" / "bin" / "moto_server"
WHY_SKIPPED = "no moto_server found: not in LAMELLA_TEST_MOTO, not on PATH, not in .tools (run: make s3-server)"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "eu-central-1",
}


def find_moto() -> Path | None:
    """The program, or None when this machine has none."""
    named, on_path = os.environ.get("LAMELLA_TEST_MOTO"), shutil.which("moto_server")
    candidates = [*([Path(named)] if named else []), *([Path(on_path)] if on_path else []), _BESIDE]
    return next((path for path in candidates if path.is_file()), None)


class S3Server:
    """A running S3."""

    def __init__(self, address: str) -> None:
        self.address = address

    def new_url(self, prefix: str = "artifacts") -> str:
        """The URL of a prefix in a new, empty bucket."""
        bucket = f"lamella-{uuid.uuid4().hex}"
        place = "<LocationConstraint>eu-central-1</LocationConstraint>"
        body = f"<CreateBucketConfiguration>{place}</CreateBucketConfiguration>".encode()
        make = urllib.request.Request(f"{self.address}/{bucket}", body, method="PUT")  # noqa: S310 - loopback
        urllib.request.urlopen(make, timeout=30).close()  # noqa: S310 - loopback
        return f"s3://{bucket}/{prefix}"


@contextmanager
def running_s3(program: Path) -> Iterator[S3Server]:
    """Start the server, and stop it at the end."""
    port = free_port()
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    # Its log tells every request.
    command = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *command]
    with running_process(command, address=f"http://127.0.0.1:{port}", path="/moto-api/") as address:
        yield S3Server(address)
