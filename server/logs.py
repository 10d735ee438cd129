"""Logging to a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged(handler: logging.FileHandler, name: str | None = None) -> Iterator[None]:
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
        handler.close()
