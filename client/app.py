"""The ClientApp, the same in simulation and deployment."""

import logging
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.local import LocalClient, Memory
from client.shard import Shard, Shards, own_folder, partition_of
from csg_core.broadcast import Held
from federation.code import check_code
from federation.interface import Interface, InterfaceError
from federation.messages import RECIPE, numbers_in, payload_in, reply
from federation.recipe import Recipe

_log = logging.getLogger(__name__)

# keys of what a client keeps between rounds, in its context's state
_KEPT, _RESIDUAL, _HELD, _VERSION = "kept", "residual", "held", "held-version"


def make_app() -> ClientApp:
    """A ClientApp that keeps its model and images in memory between messages.

    Its run config holds the recipe as JSON. Its node config holds ``partition-id``, and may hold
    ``data-dir``, where CIFAR-10 lies on this machine, or ``data-folder``, a folder of its own
    pictures in place of a partition; and ``interface``, the network interface whose bytes are
    reported, in place of that of the default route.
    """
    app = ClientApp()
    worker = _Worker()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, shard, partition = worker.ready(context)
        config = numbers_in(message.content)
        trained = client.train(
            payload_in(message.content),
            shard,
            round_=int(_number(config["server-round"])),
            partition=partition,
            memory=_memory(context),
            proximal_mu=_number(config.get("proximal-mu", 0.0)),
        )
        _keep(context, trained.memory)
        counted = _interface(client.recipe, context)
        return Message(reply(trained.payload, trained.report, counted), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client, shard, partition = worker.ready(context)
        report, memory = client.evaluate(
            payload_in(message.content),
            shard,
            round_=int(_number(numbers_in(message.content)["server-round"])),
            partition=partition,
            memory=_memory(context),
        )
        _keep(context, memory)
        return Message(reply(None, report), reply_to=message)

    @app.query()
    def query(message: Message, _context: Context) -> Message:
        """An answer to the server's question whether this client is idle."""
        return Message(RecordDict(), reply_to=message)

    return app


class _Worker:
    """The model and the images of the run that this process last worked for."""

    def __init__(self) -> None:
        self._text = ""
        self._client: LocalClient | None = None
        self._shards: Shards | None = None
        self._own: tuple[str, Shard] | None = None

    def ready(self, context: Context) -> tuple[LocalClient, Shard, int]:
        text = str(context.run_config[RECIPE])
        if self._client is None or text != self._text:
            check_code(context.run_config)
            recipe = Recipe.model_validate_json(text)
            self._client, self._text = LocalClient(recipe), text
            self._shards = self._own = None
        client, partition = self._client, partition_of(context.node_config)
        own = context.node_config.get("data-folder")
        if own is not None:
            if self._own is None or self._own[0] != own:
                shard = own_folder(client.recipe, client.device, str(own), partition)
                self._own = (str(own), shard)
            return client, self._own[1], partition
        if self._shards is None:
            place = context.node_config.get("data-dir")
            folder = None if place is None else str(place)
            self._shards = Shards(client.recipe, client.device, folder)
        return client, self._shards[partition], partition


def _interface(recipe: Recipe, context: Context) -> Interface | None:
    """What this client's network interface has counted; simulated clients have none.

    An interface may go and come back under another name: nothing is counted then, no more.
    """
    if recipe.run.superlink is None or recipe.run.interface == "none":
        return None
    try:
        return Interface.named(str(context.node_config.get("interface", "auto")))
    except InterfaceError as error:
        _log.warning("bytes are not counted: %s", error)
        return None


def _memory(context: Context) -> Memory:
    records, versions = context.state.array_records, context.state.metric_records
    held = None
    if _HELD in records:
        version = int(_number(versions[_VERSION]["version"]))
        held = Held.unpacked(version, records[_HELD][_HELD].data)
    return Memory(
        kept=records[_KEPT][_KEPT].numpy() if _KEPT in records else None,
        residual=records[_RESIDUAL][_RESIDUAL].numpy() if _RESIDUAL in records else None,
        held=held,
    )


def _keep(context: Context, memory: Memory) -> None:
    for name, values in ((_KEPT, memory.kept), (_RESIDUAL, memory.residual)):
        if values is not None:
            context.state[name] = ArrayRecord({name: Array(values)})
    held = memory.held
    if held is not None:
        packed = Array(dtype="float16", shape=held.values.shape, stype="bytes", data=held.packed)
        context.state[_HELD] = ArrayRecord({_HELD: packed})
        context.state[_VERSION] = MetricRecord({"version": held.version})


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the server sent {value!r} where a number is needed")
    return value


app = make_app()
