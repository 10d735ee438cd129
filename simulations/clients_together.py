"""Simulated clients that train several at a time on one device."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, MessageType

from client.app import Worker, make_app, trained_reply
from client.job import Job, Trained
from client.local_clients import LocalClients
from federation.devices import device_of
from federation.recipe import Recipe
from federation.sections import CLIENT_APP
from simulations.clients import Answer, Clients, ClientTimeout, Task

_log = logging.getLogger(__name__)
_ON_GPU = 10  # on an H100 twice as many are a tenth faster (docs/speed.md)
_Result = Exception | tuple[Job, Trained | Exception]


def at_once(recipe: Recipe) -> int:
    """How many clients train at once."""
    if recipe.run.cohort is not None:
        return recipe.run.cohort
    own = recipe.run.client_app == CLIENT_APP
    return _ON_GPU if own and device_of(recipe).type == "cuda" else 1


class ClientsTogether(Clients):
    """All clients, in this process; some of them train at once, and all evaluate one by one.

    Clients that train at once have the sum of their timeouts together, and are all late if they
    take longer. Their updates are held until all are done. Those of whom one raises in training
    train one by one instead, so that it fails alone; where torch fails, as when memory runs out,
    they do, too, the copies of the model are let go, and half as many train at once from then on.
    """

    def __init__(self, recipe: Recipe, run_config: Mapping[str, Any]) -> None:
        self._worker = Worker()
        super().__init__(make_app(self._worker), run_config, recipe.data.clients)
        self._recipe, self._at_once = recipe, at_once(recipe)
        self._clients: LocalClients | None = None

    def answers(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """An answer to each task, in their order; those that train at once are made together."""
        waiting = iter(tasks)
        while group := list(itertools.islice(waiting, self._at_once)):
            kinds = {task.message.metadata.message_type for task in group}
            if kinds == {MessageType.TRAIN} and len(group) > 1:
                yield from self._together(group)
            else:
                yield from map(self.answer, group)

    def _together(self, group: Sequence[Task]) -> Iterable[Answer]:
        contexts = [self._context(task) for task in group]
        try:
            with self._within(*group):
                results = self._results(group, contexts)
        except ClientTimeout:
            return [self._late(task) for task in group]
        except RuntimeError as error:  # as of torch, when memory runs out
            self._at_once, self._clients = len(group) // 2, None
            _log.warning(
                "%d clients cannot train at once, and train one by one; at most %d at once from "
                "now on; if memory ran out, lower run.cohort",
                len(group),
                self._at_once,
                exc_info=error,
            )
            return map(self.answer, group)
        except Exception as error:
            _log.warning(
                "of %d clients at once one raised; they train one by one",
                len(group),
                exc_info=error,
            )
            return map(self.answer, group)
        return list(map(self._answer, group, contexts, results))

    def _results(self, group: Sequence[Task], contexts: Sequence[Context]) -> list[_Result]:
        found: list[Job | Exception] = []
        for task, context in zip(group, contexts, strict=True):
            try:
                client, job = self._worker.job(task.message, context)
                found.append(job)
            except Exception as error:  # of this client alone
                found.append(error)
        jobs = [job for job in found if isinstance(job, Job)]
        if not jobs:
            return [error for error in found if isinstance(error, Exception)]
        if self._clients is None:  # there is one run only, and so one model
            self._clients = LocalClients(client)
        trained = zip(jobs, self._clients.train(jobs), strict=True)
        return [each if isinstance(each, Exception) else next(trained) for each in found]

    def _answer(self, task: Task, context: Context, result: _Result) -> Answer:
        if isinstance(result, Exception):
            return self._raised(task, result)
        job, trained = result
        if isinstance(trained, Exception):
            return self._raised(task, trained)
        try:
            reply = trained_reply(task.message, context, self._recipe, job, trained)
        except Exception as error:  # of this client alone
            return self._raised(task, error)
        return reply, context.state
