"""The frame of commands that are modules: ``python -m simulations...``."""

import argparse
import os
import sys
from collections.abc import Callable

from client.job import TrainingError
from federation.code import CodeError
from server.outcome import RunError


class StudyError(RuntimeError):
    """A study or benchmark that cannot go on; the message says why, and what to do."""


# the project's own, with what Python says of values and files; other errors are bugs
_SAID = (ValueError, OSError, RunError, TrainingError, CodeError, StudyError)


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the command of a module, whose description is shown as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], None]) -> None:
    """Run a command; what cannot be done is said in one line, with exit status 1."""
    name = main.__globals__["__spec__"].name.removesuffix(".__main__").rpartition(".")[2]
    try:
        main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _SAID as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def positive(text: str) -> int:
    """A number from 1 on."""
    return _from(1, text)


def several(text: str) -> int:
    """A number from 2 on."""
    return _from(2, text)


def _from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)
