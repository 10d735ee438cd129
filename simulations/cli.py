"""The ``csg`` command."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 only if what was asked for was done."""
    name = "csg"
    try:
        with _interrupted_at_once():
            parser = _parser()
        options = parser.parse_args(arguments)
        name = f"csg {options.command}"
        return int(options.execute(options) or 0)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{name}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """End by Ctrl-C while modules are imported, some of which would swallow a KeyboardInterrupt."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        os.write(2, b"csg: interrupted\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    ignored = before is not signal.default_int_handler  # as of what a shell runs in the background
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parser() -> argparse.ArgumentParser:
    # here, as it takes seconds
    from simulations import compare, estimate, evaluate, export, report, resume, run, train

    parser = _Parser(
        prog="csg",
        description="CNNs whose kernels a small shared generator makes from short codes.",
    )
    parser.add_argument("--version", action="version", version=f"csg-fl {version('csg-fl')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, resume, estimate, compare, report, export, evaluate, train):
        name = module.__name__.rpartition(".")[2]
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(execute=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
