"""What clients have not been sent yet of the model that the server has come to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_core import Manifest
from csg_core.codecs import GeneratorSchedule
from csg_core.codecs.base import FLOAT16_MAX, Values


class Owed:
    """Error feedback of the downlink (Tang et al., "DoubleSqueeze", 2019), and FedAvgM's momentum.

    What a lossy downlink leaves out of the model that a round trains is added to the model of the
    next; what it leaves out of a generator waits until that travels again, and what it leaves out
    of running statistics is in the next update. Arrays are float32 [manifest.size].
    """

    def __init__(self, manifest: Manifest, schedule: GeneratorSchedule) -> None:
        self._trained = manifest.trained
        self._still = manifest.count("generator")  # the first values
        self._schedule = schedule
        self.left_out: Values = np.zeros(0, np.float32)  # of the model that is trained now
        self._next: Values | None = None  # what the next model is sent in addition
        self.waits: Values = np.zeros(self._still, np.float32)  # of the generator

    def still(self, round_: int) -> int:
        """How many of the first values do not train in a round: those of a generator that rests."""
        return 0 if self._schedule.trains(round_) else self._still

    def added_to(self, model: Values) -> Values:
        """What clients are to be sent, of a model that follows the last one that was settled."""
        target = model if self._next is None else model + self._next
        return target.clip(-FLOAT16_MAX, FLOAT16_MAX)

    def note(self, target: Values, sent: Values) -> None:
        """Take in what clients were sent of a target."""
        self.left_out = target - sent
        self.left_out[self._trained :] = 0

    def settle(self, round_: int, new: Values, sent: Values, momentum: Values) -> None:
        """Part the model that came of a round into one that updates alone made, and what is owed.

        ``new`` is changed in place; ``sent`` is what clients trained from, ``momentum`` float32
        [trained] what it holds of earlier rounds.
        """
        owed, still = self.left_out.copy(), self._still
        waits = self.waits + owed[:still]
        if momentum.any():
            new[: self._trained] -= momentum
            owed[: self._trained] += momentum
        if self._schedule.trains(round_):
            owed[:still] += self.waits
            self.waits = np.zeros_like(waits)
        else:
            new[:still], owed[:still], self.waits = sent[:still], 0, waits
        self._next = owed if owed.any() else None

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold, by name."""
        found = {} if self._next is None else {"owed": self._next}
        return found | ({"waits": self.waits} if self.waits.any() else {})

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave, among other arrays."""
        self._next = state.get("owed")
        self.waits = state.get("waits", np.zeros_like(self.waits))
