"""Device processes that are killed: a starter that has everything imported forks one for each update.

Run as `python killed_device.py HOME`: for each line on standard input it starts one update in a child, kills it after
so many seconds as the line says (`never` lets it live), and says its wait status.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from client_sdk import Device, Limits


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    home = Path(sys.argv[1])
    say("ready")
    for line in sys.stdin:
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
        if line.strip() != "never":
            time.sleep(float(line))
            os.kill(child, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
        say(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
