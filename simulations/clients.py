"""Simulated clients: the ClientApp, called in this process or in several others."""

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from federation.recipe import RecipeError
from server.outcome import RunError

_log = logging.getLogger(__name__)
RUN_ID = 1
_START_S = 30.0
_AHEAD = 2  # messages given out for each worker, so that none waits for the next


@dataclass(frozen=True, slots=True)
class Task:
    """A message, what its client keeps, and the seconds that it has to answer."""

    message: Message
    state: RecordDict
    timeout: float | None


Answer = tuple[Message | None, RecordDict]  # None: not in time; and what the client keeps now
_Told = tuple[Answer, list[logging.LogRecord]]


class ClientTimeout(BaseException):
    """Raised in a client that takes too long; no ``except Exception`` of its own swallows it."""


def take_part() -> None:
    """Have this process be of the one run, as Flower wants of all that make messages."""
    TaskIdentity.run_id, TaskIdentity.task_id = RUN_ID, RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def client_app(name: str) -> ClientApp:
    """The ClientApp at ``module:name``; modules in the working directory are found as well.

    Raises:
        RecipeError: if there is none.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        own = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        missing = own or isinstance(error, AttributeError) or not attribute
        remedy = (
            f"give module:name, and call csg from the folder that holds {module}.py"
            if missing
            else "mend that module"
        )
        raise RecipeError(
            f"run.client_app {name!r} cannot be imported ({type(error).__name__}: {error}); "
            f"{remedy}"
        ) from error
    if not isinstance(app, ClientApp):
        raise RecipeError(f"run.client_app {name!r} is no flwr ClientApp")
    return app


class Clients:
    """All clients, one after another in this process.

    Every client has the whole timeout of a round, as if it ran beside the others, and the first of
    them 30 s more, since it loads the images and builds the model for all; it is enforced in the
    main thread of a Unix process only.
    """

    def __init__(self, app: ClientApp, run_config: Mapping[str, Any], count: int) -> None:
        take_part()
        self._app, self._run_config, self._count = app, dict(run_config), count
        self._start_up = _START_S

    def answers(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """An answer to each task, in their order, each made when asked for."""
        return map(self.answer, tasks)

    def answer(self, task: Task) -> Answer:
        """What one client answers; if it raises, the error that Flower would make of it."""
        context = self._context(task)
        try:
            with self._within(task):
                reply = self._app(task.message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp gave a {type(reply).__name__}, and no Message")
            return reply, context.state
        except ClientTimeout:
            return self._late(task)
        except (Exception, SystemExit) as error:  # it ends the client, and not the run
            return self._raised(task, error)

    def _context(self, task: Task) -> Context:
        partition = task.message.metadata.dst_node_id
        return Context(
            run_id=RUN_ID,
            node_id=partition,
            node_config={"partition-id": partition, "num-partitions": self._count},
            state=task.state,
            run_config=dict(self._run_config),
        )

    def _within(self, *tasks: Task) -> AbstractContextManager[None]:
        """Raises ``ClientTimeout`` in the block when the time of all these tasks is over."""
        seconds = [task.timeout for task in tasks if task.timeout is not None]
        limit = sum(seconds) + self._start_up if seconds else None
        self._start_up = 0.0
        return _deadline(limit)

    def _late(self, task: Task) -> Answer:
        partition = task.message.metadata.dst_node_id
        _log.warning("client %d did not answer within %g s", partition, task.timeout)
        return None, task.state

    def _raised(self, task: Task, error: BaseException) -> Answer:
        _log.warning("client %d raised", task.message.metadata.dst_node_id, exc_info=error)
        reason = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code, reason), reply_to=task.message), task.state


class Workers:
    """Clients in processes of their own, a context manager; answers come in the tasks' order.

    The cores are shared out among the processes. Each imports the ClientApp by its name, and maps
    the same images.
    """

    def __init__(self, count: int, app: str, run_config: Mapping[str, Any], clients: int) -> None:
        self._count, self._others = count, set(multiprocessing.active_children())
        spawn = multiprocessing.get_context("spawn")
        threads, level = max(1, torch.get_num_threads() // count), logging.getLogger().level
        start = (app, dict(run_config), clients, threads, level)
        self._pool = ProcessPoolExecutor(count, spawn, _begin, start)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes, whatever they are at."""
        ours = set(multiprocessing.active_children()) - self._others
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in ours:
            process.terminate()
        for process in ours:
            process.join()

    def answers(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """An answer to each task, in their order; only a few are under way at a time.

        Raises:
            RunError: if a process ended, as when memory runs out.
        """
        under_way: deque[Future[_Told]] = deque()
        try:
            for task in tasks:
                under_way.append(self._pool.submit(_answer, task))
                if len(under_way) == _AHEAD * self._count:
                    yield _heard(under_way.popleft().result())
            while under_way:
                yield _heard(under_way.popleft().result())
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process ended without a word, as when memory runs out; lower "
                "run.workers, then csg resume"
            ) from error


def _heard(told: "_Told") -> Answer:
    """An answer, its log handed to the loggers of the same names here."""
    answer, records = told
    for record in records:
        logging.getLogger(record.name).handle(record)
    return answer


# of a worker process
_clients: Clients | None = None
_log_kept: list[logging.LogRecord] = []


def _begin(app: str, run_config: dict[str, Any], count: int, threads: int, level: int) -> None:
    """Make this process a worker."""
    global _clients
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the main process
    torch.set_num_threads(threads)
    root = logging.getLogger()
    root.addHandler(_Kept())
    root.setLevel(level)
    _clients = Clients(client_app(app), run_config, count)


def _end_with_parent() -> None:
    """However it ends: a worker waits for tasks for ever, as it holds its end of their pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(task: Task) -> "_Told":
    assert _clients is not None
    _log_kept.clear()
    return _clients.answer(task), list(_log_kept)


class _Kept(QueueHandler):
    """Makes records fit to be sent, and keeps them for the answer to go with."""

    def __init__(self) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]

    def enqueue(self, record: logging.LogRecord) -> None:
        _log_kept.append(record)


@contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """Raise ``ClientTimeout`` in the block when it has taken so long."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise ClientTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
