"""Run by `test_device`: the whole life of a light device in one process; then says which named modules it imported.

Not a test by itself. The update service and the version are made first, by another process, so that only the device's
own imports are seen.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MAKE = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from simulators.models import write_adapter_version, write_base_version
write_adapter_version(write_base_version(Path(sys.argv[1]) / "v1"), Path(sys.argv[1]) / "v2")
"""


def main(folder: Path, forbidden: list[str]) -> None:
    code = MAKE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    from simulators.update_service import FakeUpdateService

    import client_sdk.cli  # noqa: F401 - what the command imports counts as well
    from client_sdk import Device

    with FakeUpdateService(folder / "service").running() as service:
        device = Device(folder / "home")
        device.enroll(service.enrolment(folder))
        service.publish(folder / "v1", version=1)
        sys.stdout.write(f"{device.update().decision}\n")
        device.generate("hello", max_new_tokens=4)
        service.publish(folder / "v2", version=2, deltas_from=(1,))
        sys.stdout.write(f"{device.update().decision}\n")
        device.generate([{"role": "user", "content": "hello"}], max_new_tokens=4)
    sys.stdout.write(f"imported: {' '.join(name for name in forbidden if name in sys.modules)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
