"""Updates made one: a streaming weighted mean, or one of Flower's strategies on decoded arrays."""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from numpy.typing import NDArray
from torch import Tensor

from csg_core.averaging import WeightedMean
from csg_core.codecs.base import Values

STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "krum": Krum,
    "fedprox": FedProx,
}
# These step along the mean update; a step past it may make a running variance negative, so
# statistics are averaged beside them. The robust ones see everything.
_OPTIMIZERS = (FedAvgM, FedAdam, FedYogi)
# without these, Flower's defaults make the strategy plain FedAvg
_NEEDED = {"fedprox": {"proximal_mu"}, "fedavgm": {"server_momentum"}}
_FRACTIONS = {"server_momentum", "beta_1", "beta_2"}  # of what was before; else it grows for ever
_MALICIOUS, _ADAPTIVITY = "num_malicious_nodes", "tau"  # the latter is divided by
_RATES = {"eta", "server_learning_rate"}
_IGNORED = {"eta_l"}  # a client's learning rate, which Flower's strategies keep but never use
_STATE = ("momentum_vector", "m_t", "v_t")
_KEY = "model"


@dataclass(frozen=True, slots=True)
class Update:
    """A client's decoded update, trained minus received, and the examples behind it."""

    partition: int
    examples: int
    values: Values | Tensor

    @property
    def array(self) -> Values:
        """The values as numpy has them."""
        return self.values.cpu().numpy() if isinstance(self.values, Tensor) else self.values


class AggregationError(ValueError):
    """The recipe's strategy cannot make a model of a round's updates; the message says why."""


class Aggregation:
    """The recipe's strategy: ``trained`` is the number of values that are no running statistics.

    Raises:
        ValueError: if an option is none of the strategy's, or cannot be for a ``cohort``.
    """

    def __init__(
        self, name: str, options: dict[str, float], *, trained: int, cohort: int | None = None
    ) -> None:
        self._flower = _flower_strategy(name, options)
        malicious = int(options.get(_MALICIOUS, 0))
        # each update is judged by the cohort's others but so many and one
        if cohort is not None and malicious > (most := max(0, cohort - 3)):
            raise ValueError(
                f"server.options.{_MALICIOUS} = {malicious}: {name} takes at most "
                f"{most} of a cohort of {cohort}"
            )
        if cohort is not None and isinstance(self._flower, FedTrimmedAvg):
            cut = self._flower.beta  # of each end, rounded down
            if cohort < 3:
                raise ValueError(f"{name} takes a cohort of 3 or more, and this one is of {cohort}")
            if not int(cut * cohort):
                raise ValueError(
                    f"server.options.beta = {cut:g}: {name} cuts none of a cohort of {cohort}; "
                    f"give {math.ceil(1e4 / cohort) / 1e4:g} or more, below 0.5"
                )
        self._trained = trained

    def configure(self, round_: int, current: Values, grid: Grid) -> ConfigRecord:
        """Tell Flower's strategy of the model; what it wants clients to know (proximal-mu)."""
        config = ConfigRecord()
        if type(self._flower) is FedAvg:  # has nothing to say
            return config
        if isinstance(self._flower, FedAvgM):  # it would note the first model alone
            self._flower.current_arrays = None
        # fraction_train is 0: the strategy notes the model and samples nobody
        self._flower.configure_train(round_, self._record(current), config, grid)
        return config

    def __call__(
        self, round_: int, current: Values, updates: Iterable[Update], *, still: int = 0
    ) -> Values:
        """The next model, from the current one and at least one update.

        Of the first ``still`` values, which do not train in this round, what is carried from round
        to round stays as it is.

        Raises:
            AggregationError: if there is none, or Flower's strategy cannot make one of so few.
        """
        if type(self._flower).aggregate_train is FedAvg.aggregate_train:
            return current + _mean(updates, current.size)
        kept = [replace(update, values=update.array) for update in updates]
        if not kept:
            raise AggregationError("there is no update to aggregate")
        # The others do not ask where the origin is, and distances of whole models would drown
        # small updates in the rounding of float32.
        origin = current if isinstance(self._flower, _OPTIMIZERS) else np.float32(0)
        replies = [self._reply(origin + update.array, update.examples) for update in kept]
        before = {name: array[:still].copy() for name, array in self.state().items()}
        try:
            arrays, _ = self._flower.aggregate_train(round_, replies)
        except Exception as error:  # Flower's own kinds, and numpy's
            raise AggregationError(f"{type(self._flower).__name__} failed: {error}") from error
        for name, array in self.state().items():
            array[:still] = before.get(name, 0)
        assert arrays is not None
        head = model_in(arrays)
        if not isinstance(self._flower, _OPTIMIZERS):
            return current + head
        tail = current + _mean(kept, current.size)
        return np.concatenate([head, tail[self._trained :]])

    @property
    def momentum(self) -> Values:
        """What FedAvgM will add to the next model of earlier rounds; of others, and first, zeros.

        float32 [trained].
        """
        flower = self._flower
        if not isinstance(flower, FedAvgM) or flower.momentum_vector is None:
            return np.zeros(self._trained, np.float32)
        factor = np.float32(-flower.server_learning_rate * flower.server_momentum)
        step: Values = factor * flower.momentum_vector[0]
        return step

    def state(self) -> dict[str, NDArray[Any]]:
        """What an adaptive strategy carries from round to round, for a checkpoint."""
        found: dict[str, NDArray[Any]] = {}
        for name in _STATE:
            held = getattr(self._flower, name, None)
            if held:
                found[name] = np.asarray(held[_KEY] if isinstance(held, dict) else held[0])
        return found

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave."""
        for name in _STATE:
            if name in state:
                as_list = name == "momentum_vector"
                setattr(self._flower, name, [state[name]] if as_list else {_KEY: state[name]})

    def _record(self, values: Values) -> ArrayRecord:
        if isinstance(self._flower, _OPTIMIZERS):
            values = values[: self._trained]
        return model_record(np.ascontiguousarray(values))

    def _reply(self, values: Values, examples: int) -> Message:
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": self._record(values), "metrics": metrics})
        return Message(content, dst_node_id=0, message_type="train")


def _mean(updates: Iterable[Update], size: int) -> Values:
    mean = WeightedMean(size)
    for update in updates:
        mean.add(update.values, update.examples)
    if not mean.weight:
        raise AggregationError("there is no update to aggregate")
    return mean.mean()


def _flower_strategy(name: str, options: dict[str, float]) -> FedAvg:
    kind = STRATEGIES[name]
    base = inspect.signature(FedAvg.__init__).parameters
    parameters = inspect.signature(kind.__init__).parameters
    own = [key for key in parameters if key not in base and key not in _IGNORED]
    for key in options:
        if key not in own:
            raise ValueError(
                f"server.options.{key} is nothing that {name} takes; "
                f"it takes {', '.join(own) or 'no options'}"
            )
    for key in sorted(_NEEDED.get(name, set()) - set(options)):
        raise ValueError(f"server.strategy {name} is FedAvg without server.options.{key}; set it")
    for key, value in options.items():
        if key == _MALICIOUS and value != int(value):
            raise ValueError(f"server.options.{key} = {value:g}: give a whole number, as 1")
        if key in _FRACTIONS and value >= 1:
            raise ValueError(f"server.options.{key} = {value:g}: give a number below 1, as 0.9")
        if key in _RATES | {_ADAPTIVITY} and not value > 0:
            raise ValueError(f"server.options.{key} = {value:g}: give a number above 0, as 0.001")
    whole: dict[str, Any] = {k: int(v) if k == _MALICIOUS else v for k, v in options.items()}
    try:
        strategy = kind(**whole)
    except (TypeError, ValueError) as error:
        raise ValueError(f"server.options for {name}: {error}") from error
    strategy.fraction_train = 0.0  # it aggregates; nodes are sampled here
    return strategy


def model_record(values: Values) -> ArrayRecord:
    """A packed model as Flower's strategies pass it on."""
    return ArrayRecord({_KEY: Array(values)})


def model_in(arrays: ArrayRecord) -> Values:
    """The packed model of ``model_record``."""
    return np.asarray(arrays[_KEY].numpy(), np.float32)
