"""Which version of the model each node holds, and the payload that brings it to the newest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_core import Manifest
from csg_core.broadcast import Channel, Sender
from csg_core.codecs import codec_named
from csg_core.codecs.base import Values
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
        channel = Channel(manifest.fingerprint, manifest.parts, codec, wire.deltas)
        self._seed = recipe.run.seed
        self._sender = Sender(channel, first if start is None else start, int(start is not None))
        self._versions: dict[int, int | None] = {}  # None: a whole model is needed

    def payloads(self, model: Values, round_: int, kind: str, nodes: list[int]) -> list[bytes]:
        """Make the next version, of a model; the payloads that bring it to the nodes.

        Raises:
            CodecError: if the codec cannot hold a value.
        """
        seed = derived_seed(self._seed, "downlink", round_, kind)
        self._sender.advance(model, round_, np.random.Generator(np.random.Philox(key=seed)))
        return [self._sender.message(self._versions.get(node, 0)) for node in nodes]

    def pass_on(self, model: Values, round_: int) -> Passed:
        """Make the next version, of a model, for nodes of this process; the codec is exact."""
        return self._sender.pass_on(model, round_)

    def update_label(self, round_: int) -> Label:
        """What an update trained from the newest version has to be."""
        return self._sender.channel.label("update", round_, self._sender.held)

    def answered(self, node: int) -> None:
        """The node answered as it should, so it holds the newest version."""
        self._versions[node] = self._sender.held.version

    def failed(self, node: int) -> None:
        """The node failed; it may have lost what it held."""
        self._versions[node] = None

    def forget(self) -> None:
        """All nodes have lost what they held."""
        self._versions = {}

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold."""
        known = [(node, 0 if v is None else v + 1) for node, v in self._versions.items()]
        # nodes are uint64, which checkpoints cannot hold
        versions = np.array(known, np.uint64).reshape(-1, 2).view(np.int64)
        return {**self._sender.state(), "versions": versions}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave."""
        self._sender.restore(state)
        versions = state["versions"].view(np.uint64)
        self._versions = {node: v - 1 if v else None for node, v in versions.tolist()}

    @property
    def held(self) -> Values:
        """The newest version, as nodes have it."""
        return self._sender.held.values

    @property
    def version(self) -> int:
        """The number of the newest version."""
        return self._sender.held.version
