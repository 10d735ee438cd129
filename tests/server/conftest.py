"""Fixtures of the server's tests."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.supercore.task_identity import TaskIdentity

from csg_core import build, manifest, pack
from server.aggregation import model_record
from server.strategy import CsgStrategy
from tests.server.replies import Nodes


@pytest.fixture
def made(tiny):
    """Makes strategies of three clients that have sent a model."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

    def make(*, wire=None, far=0.0, holdout=0.0, server=None, asks=True, **settings):
        """A strategy that has sent a model, the one of the seed or one that is ``far`` from it.

        Unless it ``asks``, it has sent nothing. With ``holdout``, clients keep their running
        statistics, and evaluate.
        """
        train = {"batch_norm": "local_statistics" if holdout else "average"}
        data = {"clients": 3, "holdout": holdout}
        server = {"min_clients": 2, **(server or {})}
        recipe = tiny(data=data, train=train, server=server, wire=wire or {})
        model, groups = build(recipe.model, seed=0), recipe.train.travelling()
        found = CsgStrategy(recipe, manifest(model, groups), pack(model, groups), **settings)
        first = model_record(found.downlink.held + np.float32(far))
        if asks:
            found.configure_train(1, first, ConfigRecord(), Nodes())
        return found

    return make
