"""Starts a command that ends when its parent dies, however it dies (Linux; elsewhere the command alone).

    python leash.py PARENT COMMAND...

It stands alone and imports nothing of the package, so that it costs nothing.
"""

import os
import signal
import sys


def main() -> None:
    """Ask the system for a SIGTERM at the parent's death, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we had asked
            return
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
