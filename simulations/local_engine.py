"""The engine ``local``: a Grid whose clients run one after another in this process."""

import importlib
import itertools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from federation.code import CODE, code_identity
from federation.messages import RECIPE
from federation.recipe import Recipe, RecipeError
from server.app import serve
from server.record import RoundRow

_log = logging.getLogger(__name__)
_RUN_ID = 1
_START_S = 30.0


class _ClientTimeout(BaseException):
    """Raised in a client that takes too long; no ``except Exception`` of its own swallows it."""


def run_local(
    recipe: Recipe,
    on_round: Callable[[RoundRow], None],
    on_client: Callable[[int, int], None] | None = None,
) -> None:
    """Run a recipe in this process; ``on_client`` is told how many of a cohort are done."""
    serve(recipe, LocalGrid(recipe, client_app(recipe.run.client_app), on_client), on_round)


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
    except Exception as error:  # whatever a module does when it is imported
        raise RecipeError(
            f"run.client_app {name!r} cannot be imported ({error}); give module:name"
        ) from error
    if not isinstance(app, ClientApp):
        raise RecipeError(f"run.client_app {name!r} is no flwr ClientApp")
    return app


class LocalGrid(Grid):
    """Hands each message to the ClientApp when its reply is asked for, in the messages' order.

    Nodes are called by their partitions. Every client has the whole timeout of a round, as if it
    ran beside the others, and the first of them 30 s more, since it loads the images and builds the
    model for all; it is enforced in the main thread of a Unix process only.
    """

    def __init__(
        self,
        recipe: Recipe,
        app: ClientApp,
        on_client: Callable[[int, int], None] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id = _RUN_ID, _RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.partitions: Mapping[int, int] = {n: n for n in range(recipe.data.clients)}
        self._app = app
        self._run_config = {RECIPE: recipe.model_dump_json(), CODE: code_identity()}
        self._states: dict[int, RecordDict] = {}  # of clients that keep something
        self._on_client = on_client or (lambda _done, _of: None)
        self._pushed: dict[str, Message] = {}
        self._names = itertools.count()
        self._start_up = _START_S

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All clients, always."""
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep messages until their replies are pulled."""
        names = []
        for message in messages:
            names.append(f"message-{next(self._names)}")
            self._pushed[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to pushed messages."""
        return self.send_and_receive([self._pushed.pop(name) for name in message_ids])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies one at a time, each made when asked for; none of a client that times out."""
        waiting = list(messages)
        for done, message in enumerate(waiting):
            self._on_client(done, len(waiting))
            reply = self._answer(message, timeout)
            if reply is not None:
                yield reply

    def kept(self) -> dict[int, NDArray[np.uint8]]:
        """The state of every client that keeps any, serialised as Flower does."""
        return {
            partition: np.frombuffer(
                recorddict_to_proto(state).SerializeToString(deterministic=True), np.uint8
            )
            for partition, state in sorted(self._states.items())
        }

    def restore(self, kept: Mapping[int, NDArray[np.uint8]]) -> None:
        """Take up what ``kept`` gave."""
        self._states = {
            partition: recorddict_from_proto(ProtoRecordDict.FromString(array.tobytes()))
            for partition, array in kept.items()
        }

    def _answer(self, message: Message, timeout: float | None) -> Message | None:
        partition = message.metadata.dst_node_id
        context = Context(
            run_id=_RUN_ID,
            node_id=partition,
            node_config={"partition-id": partition, "num-partitions": len(self.partitions)},
            state=self._states.get(partition, RecordDict()),
            run_config=dict(self._run_config),
        )
        try:
            with _deadline(None if timeout is None else timeout + self._start_up):
                self._start_up = 0.0
                reply = self._app(message, context)
        except _ClientTimeout:
            _log.warning("client %d did not answer within %g s", partition, timeout)
            return None
        except Exception as error:
            _log.warning("client %d raised", partition, exc_info=True)
            reason = f"raised {type(error).__name__}: {error}"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, reason), reply_to=message)
        if context.state:
            self._states[partition] = context.state
        return reply


@contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """Raise ``_ClientTimeout`` in the block when it has taken so long."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _ClientTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
