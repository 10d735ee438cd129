"""The ClientApp, the same in simulation and deployment."""

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.job import Job, Trained
from client.local import LocalClient
from client.memory import keep, recall
from client.shard import Shard, Shards, own_folder, partition_of
from federation.code import check_code
from federation.interface import Interface, InterfaceError
from federation.messages import RECIPE, RESUMED, TAKEN, numbers_in, payload_in, reply
from federation.recipe import Recipe

_log = logging.getLogger(__name__)


def make_app(worker: "Worker | None" = None) -> ClientApp:
    """A ClientApp that keeps its model and images in memory between messages, in ``worker``.

    Its run config holds the recipe as JSON. Its node config holds ``partition-id``, and may hold
    ``data-dir``, where CIFAR-10 lies on this machine, or ``data-folder``, a folder of its own
    pictures in place of a partition; and ``interface``, the network interface whose bytes are
    reported, in place of that of the default route.
    """
    app = ClientApp()
    worker = worker or Worker()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, job = worker.job(message, context)
        return trained_reply(message, context, client.recipe, job, client.train(job))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client, shard, partition = worker.ready(context)
        round_ = int(_number(numbers_in(message.content)["server-round"]))
        report, memory = client.evaluate(
            payload_in(message.content),
            shard,
            round_=round_,
            partition=partition,
            memory=recall(context, client.recipe, partition, round_),
        )
        keep(context, client.recipe, partition, round_, memory)
        return Message(reply(None, report), reply_to=message)

    @app.query()
    def query(message: Message, _context: Context) -> Message:
        """An answer to the server's question whether this client is idle."""
        return Message(RecordDict(), reply_to=message)

    return app


class Worker:
    """The model and the images of the run that this process last worked for.

    ``make`` makes the client of a recipe: ``LocalClient``, or one that trains in another way.
    """

    def __init__(self, make: Callable[[Recipe], LocalClient] = LocalClient) -> None:
        self._make = make
        self._text = ""
        self._client: LocalClient | None = None
        self._shards: Shards | None = None
        self._own: tuple[str, Shard] | None = None

    def job(self, message: Message, context: Context) -> tuple[LocalClient, Job]:
        """What a message asks a client to train, and the model to do it on."""
        client, shard, partition = self.ready(context)
        config = numbers_in(message.content)
        round_ = int(_number(config["server-round"]))
        taken, resumed = (
            int(_number(config[key])) if key in config else None for key in (TAKEN, RESUMED)
        )
        return client, Job(
            payload=payload_in(message.content),
            shard=shard,
            round_=round_,
            partition=partition,
            memory=recall(context, client.recipe, partition, round_, taken, resumed),
            proximal_mu=_number(config.get("proximal-mu", 0.0)),
        )

    def ready(self, context: Context) -> tuple[LocalClient, Shard, int]:
        """The model, the shard and the partition of a context's run and client."""
        text = str(context.run_config[RECIPE])
        if self._client is None or text != self._text:
            check_code(context.run_config)
            recipe = Recipe.model_validate_json(text)
            self._client, self._text = self._make(recipe), text
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


def trained_reply(
    message: Message, context: Context, recipe: Recipe, job: Job, trained: Trained
) -> Message:
    """The reply to a message to train; what the client keeps is put into its context."""
    keep(context, recipe, job.partition, job.round_, trained.memory, job.memory)
    counted = _interface(recipe, context)
    return Message(reply(trained.payload, trained.report, counted), reply_to=message)


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


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the server sent {value!r} where a number is needed")
    return value


app = make_app()
