"""Which version of the model each node holds, and the payload that brings it to the newest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_core import Manifest
from csg_core.broadcast import Channel, Sender
from csg_core.codecs import Codec, codec_named
from csg_core.codecs.base import Values
from csg_core.codecs.predicted import TAPS
from csg_core.payload import Label, Passed
from federation.recipe import Recipe
from federation.seeds import derived_seed


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
        wire = recipe.wire
        codec = codec_named(wire.downlink)
        channel = Channel(manifest.fingerprint, manifest.parts, codec, wire.deltas, wire.predict)
        self._seed = recipe.run.seed
        self._sender = Sender(channel, first if start is None else start, int(start is not None))
        # the version of each node, and how many of the deltas before; None: it is sent a whole
        self._holds: dict[int, tuple[int, int] | None] = {}
        self._sent: dict[int, int] = {}  # deltas that a node holds, once it has the newest version

    def payloads(self, model: Values, round_: int, kind: str, nodes: list[int]) -> list[bytes]:
        """Make the next version, of a model; the payloads that bring it to the nodes.

        Raises:
            CodecError: if the codec cannot hold a value.
        """
        seed = derived_seed(self._seed, "downlink", round_, kind)
        rng = np.random.Generator(np.random.Philox(key=seed))
        # a delta is predicted from what all hold who may be sent it, be it later
        known = [self._sender.follows(*own) for own in set(self._holds.values()) if own]
        least = min((deltas for deltas in known if deltas is not None), default=TAPS)
        self._sender.advance(model, round_, rng, least)
        held = [self._holds.get(node, (0, 0)) for node in nodes]
        self._sent = {
            node: (own and self._sender.follows(*own)) or 0
            for node, own in zip(nodes, held, strict=True)
        }
        return [self._sender.message(*(own or (None,))) for own in held]

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
        self._holds[node] = self._sender.held.version, self._sent.get(node, 0)

    def failed(self, node: int) -> None:
        """The node failed; it may have lost what it held."""
        self._holds[node] = None

    def forget(self) -> None:
        """All nodes have lost what they held."""
        self._holds = {}

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold."""
        known = [
            (node, *((own[0] + 1, own[1]) if own else (0, 0))) for node, own in self._holds.items()
        ]
        # nodes are uint64, which checkpoints cannot hold
        nodes = np.array(known, np.uint64).reshape(-1, 3).view(np.int64)
        return {**self._sender.state(), "nodes": nodes}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave."""
        self._sender.restore(state)
        known = state.get("nodes", np.zeros((0, 3), np.int64))  # not in checkpoints of before
        nodes = known.view(np.uint64).tolist()
        self._holds = {node: (v - 1, deltas) if v else None for node, v, deltas in nodes}

    @property
    def held(self) -> Values:
        """The newest version, as nodes have it."""
        return self._sender.held.values

    @property
    def version(self) -> int:
        """The number of the newest version."""
        return self._sender.held.version
