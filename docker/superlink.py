"""Which nodes a SuperLink lets in, asked and told over its Control API by Flower's own command."""

import tempfile
from pathlib import Path
from typing import Any

_IN_USE = "key already in use"  # as Flower says it


class SuperLinkError(ValueError):
    """The SuperLink cannot be reached, or refuses; the message names it and says why."""


class KeyInUseError(SuperLinkError):
    """A node with this key is let in already."""


class SuperLink:
    """A SuperLink at ``address``, HOST:PORT, which the certificate ``ca`` proves."""

    def __init__(self, address: str, ca: Path) -> None:
        self._address, self._ca = address, ca

    def nodes(self) -> set[str]:
        """Ids of the nodes that are let in.

        Raises:
            SuperLinkError: if it cannot be reached, or refuses.
        """
        listed = self._ask("list")["nodes"]
        return {node["node-id"] for node in listed if node["status"] != "unregistered"}

    def register(self, public_key: Path, name: str) -> str:
        """Let the node with a public key in; its id.

        Raises:
            KeyInUseError: if one with this key is.
            SuperLinkError: if the SuperLink cannot be reached, or refuses.
        """
        return str(self._ask("register", str(public_key), "--name", name)["node-id"])

    def unregister(self, node: str) -> None:
        """Turn a node away for good.

        Raises:
            SuperLinkError: if the SuperLink cannot be reached, or refuses.
        """
        self._ask("unregister", node)

    def _ask(self, command: str, *arguments: str) -> dict[str, Any]:
        # here, because it takes seconds
        from server.flower_cli import (
            CONNECTION,
            EngineError,
            connect,
            environment_of,
            flwr,
            reason_in,
        )

        first, more = arguments[:1], arguments[1:]
        with tempfile.TemporaryDirectory() as place:
            scratch = Path(place)
            (scratch / "flwr").mkdir()
            connect(scratch, self._address, str(self._ca.absolute()))
            try:
                answer = flwr(
                    ["supernode", command, *first, CONNECTION, *more], environment_of(scratch)
                )
            except EngineError as error:
                raise SuperLinkError(f"SuperLink {self._address}: {error}") from error
        if not answer.get("success"):
            reason = reason_in(answer)
            kind = KeyInUseError if _IN_USE in reason else SuperLinkError
            raise kind(f"SuperLink {self._address}: {reason}")
        return answer
