"""The ``csg`` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from simulations import compare, estimate, evaluate, export, report, resume, run, train


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 only if what was asked for was done."""
    parser = _Parser(
        prog="csg",
        description="CNNs whose kernels a small shared generator makes from short codes.",
    )
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
    options = parser.parse_args(arguments)
    try:
        return int(options.execute(options) or 0)
    except ValueError as error:
        print(f"csg {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"csg {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"csg {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
