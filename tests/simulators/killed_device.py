"""Device processes that are killed: a starter that has everything imported forks one for each update.

Run as `python killed_device.py HOME`: for each line on standard input it starts one update in a child, says the child's
process id, and, once the child is gone, its wait status.
"""

import os
import sys
import traceback
from pathlib import Path

from client_sdk import Device, Limits


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    home = Path(sys.argv[1])
    say("ready")
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Device(home, limits=Limits(read_timeout_s=5.0), test_version=lambda _tree, _manifest: None).update()
                code = 0
            except BaseException:  # noqa: BLE001 - the child must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(code)
        say(child)
        say(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
