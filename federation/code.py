"""Which code this is: client and server have to agree on what travels, and on what it means."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import csg_core

CODE = "code"  # key of the run config: code_identity() of who started the run
_PACKAGES = (Path(csg_core.__file__).parent, Path(__file__).parent)


class CodeError(RuntimeError):
    """Other code than the run needs; the message says which, and the remedy."""


@cache
def code_identity() -> str:
    """Version of this package, and a hash over the sources that define what travels."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{package.name}/{path.relative_to(package).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return f"csg-fl {version('csg-fl')} ({digest.hexdigest()[:12]})"


def check_code(run_config: Mapping[str, Any]) -> None:
    """Refuse a run that other code started.

    Raises:
        CodeError: naming both.
    """
    needed = run_config.get(CODE)
    if needed != code_identity():
        raise CodeError(
            f"this is {code_identity()}, the run needs {needed or 'csg-fl of before 0.1.0'}; "
            "install the same csg-fl on server and clients"
        )
