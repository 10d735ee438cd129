"""Locks of files and folders, of which one process has each; not on Windows."""

import fcntl
from typing import IO, Any


def take_lock(file: IO[Any] | int) -> bool:
    """Take the lock of an open file; False if another process has it.

    It is given back when the file is closed or the process ends, killed or not.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
