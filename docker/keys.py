#!/usr/bin/env python3
"""Certificates and keys of a deployment, and which clients its SuperLink lets in.

    keys make --host fl.example.org --clients 2    # once: authority, server, proxy, clients
    keys register                                  # the SuperLink is up: let the clients in
    keys add hospital-a                            # one more client; then register
    keys revoke client-1                           # turned away from now on, for good
    keys renew                                     # new certificates of server and proxy
    keys list

A client's folder, clients/NAME, is all that its host needs: its key, the authority's certificate
and its partition. But for what renew is for, nothing that exists is overwritten.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from key_folder import KeyFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 only if what was asked for was done."""
    options = _parser().parse_args(arguments)
    keys = KeyFolder(options.dir)
    try:
        if options.command == "list":
            _print(keys.clients())
            print(f"certificates of server and proxy hold until {keys.ends():%Y-%m-%d}")
            return 0
        with keys.locked():
            print(_changed(keys, options))
    except (ValueError, OSError) as error:
        print(f"keys {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _changed(keys: KeyFolder, options: argparse.Namespace) -> str:
    """Run a command that changes the folder; what it has done."""
    if options.command == "make":
        keys.make(options.host, options.clients, options.days)
        return f"{keys.path}: made the authority, server, proxy and {options.clients} clients"
    if options.command == "add":
        keys.add(options.name)
        return f"made {', '.join(options.name)}; keys register lets them in"
    if options.command == "register":
        names = keys.register(options.name, options.superlink)
        return f"registered {', '.join(names) or 'none: all are'}"
    if options.command == "revoke":
        keys.revoke(options.name, options.superlink)
        return f"revoked {options.name}; keys add makes another for its partition"
    keys.renew(options.host, options.days)
    return f"certificates hold until {keys.ends():%Y-%m-%d}; restart server and proxy"


def _print(clients: dict[str, dict[str, Any]]) -> None:
    for name, of in clients.items():
        state = "revoked" if of["revoked"] else "registered" if of["node"] else "not registered"
        print(f"{name:24} partition {of['partition']:<4} {state:15} node {of['node'] or '-'}")


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100,000")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(os.environ.get("CSG_KEYS_DIR", "keys")),
        help="folder of the keys ($CSG_KEYS_DIR, else keys)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser("make", help="authority, server, proxy and first clients")
    make.add_argument("--host", action="append", required=True,
                      help="name or address of the server for clients; repeatable")  # fmt: skip
    make.add_argument("--clients", type=_number, default=2, help="how many to begin with (2)")
    add = commands.add_parser("add", help="more clients")
    add.add_argument("name", nargs="+")
    register = commands.add_parser(
        "register", help="let clients in; without a name, all whom the SuperLink does not know"
    )
    register.add_argument("name", nargs="*")
    revoke = commands.add_parser("revoke", help="turn a client away for good")
    revoke.add_argument("name")
    renew = commands.add_parser("renew", help="new certificates of server and proxy")
    renew.add_argument("--host", action="append", default=[],
                       help="of the server for clients; repeatable (as before)")  # fmt: skip
    commands.add_parser("list", help="clients, and whether they are let in")
    for command in (make, renew):
        command.add_argument("--days", type=_number, default=825,
                             help="validity of certificates (825)")  # fmt: skip
    for command in (register, revoke):
        address = os.environ.get("CSG_SUPERLINK", "127.0.0.1:8000")
        command.add_argument("--superlink", default=address,
                             help=f"HOST:PORT of its Control API ({address})")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
