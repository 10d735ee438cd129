"""Logging to a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class LogFile(logging.FileHandler):
    """A file of log lines, without those that cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Pass over a line that cannot be written: who writes a run says so."""


@contextmanager
def logged(handler: LogFile, name: str | None = None) -> Iterator[None]:
    """What a logger takes from INFO on goes to a file, which is closed at the end.

    Without a ``name``, it is the root logger.
    """
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        with suppress(OSError):  # a full disk, which what writes the run tells of
            handler.close()
