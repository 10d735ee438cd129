"""Which version of the model each node holds, and the payload that brings it to the newest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_core import Manifest
from csg_core.codecs import Codec
from csg_core.codecs.base import Values
from csg_core.codecs.predicted import TAPS
from csg_core.payload import Label, Passed
from csg_core.sender import Sender
from federation.recipe import Recipe
from federation.seeds import derived_numpy_rng


class Downlink:
    """The sender of the model, and what is known of its receivers.

    A node that was never heard of is taken to hold version 0, which the recipe's seed makes.

    Args:
        first: that version, packed.
        start: another model that the run begins with, as version 1; nodes are sent it whole.

    Raises:
        CodecError: if a value is beyond float16 where deltas are sent.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, first: Values, start: Values | None = None
    ) -> None:
        channel = recipe.wire.channel(manifest)
        self._seed = recipe.run.seed
        self._sender = Sender(channel, first if start is None else start, int(start is not None))
        # the version of each node, and how many of the last deltas; None: it is sent a whole
        self._holds: dict[int, tuple[int, int] | None] = {}
        self._depths: dict[int, int] = {}  # of nodes that were sent the newest version, once there

    def payloads(self, model: Values, round_: int, kind: str, nodes: list[int]) -> list[bytes]:
        """Make the next version, of a model; the payloads that bring it to the nodes.

        Raises:
            CodecError: if the codec cannot hold a value.
        """
        rng = derived_numpy_rng(self._seed, "downlink", round_, kind)
        # a delta is predicted from what all hold who may be sent it, be it later
        depths = [self._sender.depth_after(*own) for own in set(self._holds.values()) if own]
        least = min((depth for depth in depths if depth is not None), default=TAPS)
        self._sender.advance(model, round_, rng, least)
        held = {node: self._holds.get(node, (0, 0)) for node in nodes}
        led = {own: self._led(own) for own in set(held.values())}
        self._depths = {node: led[own][1] for node, own in held.items()}
        return [led[held[node]][0] for node in nodes]

    def _led(self, own: tuple[int, int] | None) -> tuple[bytes, int]:
        """What brings one who holds this to the newest version, and how many deltas it has then."""
        if own is None:
            return self._sender.message(None), 0
        return self._sender.message(*own), self._sender.depth_after(*own) or 0

    def pass_on(self, model: Values, round_: int) -> Passed:
        """Make the next version, of a model, for nodes of this process; the codec is exact."""
        return self._sender.pass_on(model, round_)

    def update_label(self, round_: int) -> Label:
        """What an update trained from the newest version has to be."""
        return self._sender.channel.label("update", round_, self._sender.held)

    def predicting(self, codec: Codec) -> Codec:
        """What a codec becomes for an update trained from the newest version."""
        return self._sender.channel.predicting(codec, self._sender.held)

    def answered(self, node: int) -> None:
        """The node answered as it should, so it holds the newest version."""
        self._holds[node] = self._sender.held.version, self._depths.get(node, 0)

    def failed(self, node: int) -> None:
        """The node failed; it may have lost what it held."""
        self._holds[node] = None

    def forget(self) -> None:
        """All nodes have lost what they held."""
        self._holds = {}

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold."""
        versions = [(node, 0 if own is None else own[0] + 1) for node, own in self._holds.items()]
        depths = [0 if own is None else own[1] for own in self._holds.values()]
        return {
            **self._sender.state(),
            # nodes are uint64, which checkpoints cannot hold
            "versions": np.array(versions, np.uint64).reshape(-1, 2).view(np.int64),
            "depths": np.array(depths, np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave."""
        self._sender.restore(state)
        versions = state["versions"].view(np.uint64).tolist()
        depths = state.get("depths", np.zeros(len(versions), np.int64))  # none in older ones
        self._holds = {
            node: (version - 1, depth) if version else None
            for (node, version), depth in zip(versions, depths.tolist(), strict=True)
        }

    @property
    def held(self) -> Values:
        """The newest version, as nodes have it."""
        return self._sender.held.values

    @property
    def version(self) -> int:
        """The number of the newest version."""
        return self._sender.held.version
