"""Bytes that crossed a network interface, protocol and all, as the kernel counts them."""

from pathlib import Path

from federation.recipe import RecipeError

_COUNTERS = Path("/proc/net/dev")  # of the network namespace of this process
_RECEIVED, _SENT = 0, 8  # columns


def interface_bytes(name: str) -> tuple[int, int]:
    """Bytes received and sent by an interface since it came up, whoever caused them.

    Raises:
        RecipeError: if there is no such interface here.
    """
    lines = _COUNTERS.read_text().splitlines()[2:] if _COUNTERS.exists() else []
    found = {
        before.strip(): after.split() for before, _, after in (x.partition(":") for x in lines)
    }
    if name not in found:
        raise RecipeError(
            f"run.interface {name!r} is not there; use one of {', '.join(sorted(found)) or 'none'}"
        )
    return int(found[name][_RECEIVED]), int(found[name][_SENT])
