"""Bytes on the wire by round: at the server's network interface, and at each client's."""

from dataclasses import dataclass

from federation.interface import Interface, InterfaceError
from federation.recipe import Recipe, RecipeError


@dataclass(slots=True, kw_only=True)
class ClientBytes:
    """Bytes of a client in a round.

    Attributes:
        payload_bytes_up, payload_bytes_down: of its payloads, header included.
        wire_bytes_up, wire_bytes_down: all that the client's interface sent and received between
            its report of the round before that it trained in, and this one's: the reply to a
            message is sent after the report in it was made. None where not measured.
        interface: of the client, as it says; None where not measured.
        interface_shared: whether traffic of others than the client may be in the figures.
    """

    payload_bytes_up: int = 0
    payload_bytes_down: int = 0
    wire_bytes_up: int | None = None
    wire_bytes_down: int | None = None
    interface: str | None = None
    interface_shared: bool | None = None


class ClientCounters:
    """What the interfaces of nodes had counted when they last reported."""

    def __init__(self) -> None:
        self._last: dict[int, Interface | None] = {}

    def note(self, node: int, found: Interface | None, into: ClientBytes) -> None:
        """Write what crossed a node's interface since its last report; None of its first one."""
        before, self._last[node] = self._last.get(node), found
        if found is not None:
            into.interface, into.interface_shared = found.name, found.shared
        into.wire_bytes_down, into.wire_bytes_up = crossed(before, found)


def crossed(before: Interface | None, now: Interface | None) -> tuple[int | None, int | None]:
    """Bytes received and sent between two moments; None if a counter began anew in between."""
    if before is None or now is None or before.name != now.name:
        return None, None
    received, sent = now.received - before.received, now.sent - before.sent
    return (None, None) if received < 0 or sent < 0 else (received, sent)


def server_interface(recipe: Recipe) -> Interface | None:
    """The interface that the recipe names, as it is now; of ``auto`` only in a deployment.

    Raises:
        RecipeError: if there is no such interface here.
    """
    name = recipe.run.interface
    if name == "auto" and recipe.run.superlink is None:
        return None
    try:
        return Interface.named(name)
    except InterfaceError as error:
        raise RecipeError(f"run.{error}") from error
