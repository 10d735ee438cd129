"""With feedback the server comes to the sum of all updates, but for what is owed at the end."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.job import Job
from client.local import LocalClient
from client.memory import Memory, keep, recall
from csg_core.broadcast import Held
from csg_core.payload import decode

ROUNDS = 6
WIRES = {
    "ecsq": {"uplink": "ecsq"},
    "ternary": {"uplink": "ternary; statistics=fp16"},
    "top k": {"uplink": "topk:fraction=0.05; statistics=fp16"},
    "three bits": {"uplink": "uniform:bits=3; statistics=fp16"},
    "nearest": {"uplink": "uniform:bits=1,nearest=true; statistics=fp16"},
    "drive": {"uplink": "uniform:bits=1,rotate=true; statistics=fp16"},
    "predicted": {"uplink": "ecsq", "deltas": True, "predict": True},
}


@pytest.fixture(params=WIRES)
def client(tiny, request):
    return LocalClient(tiny(wire=WIRES[request.param]))


def _context():
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def _rounds(client, seed, lost_after=0):
    """Sums over rounds of updates and of what the server decodes, and all that was owed.

    After round ``lost_after`` the client's state is gone. Where updates are predicted, it is from
    steps that are alike.
    """
    rng, size = np.random.default_rng(seed), client._trained
    first = client._first.values
    like, models = rng.laplace(size=first.size) * 0.01, [first]
    made, sent, owed = np.zeros(size), np.zeros(size), []
    context = _context()
    for round_ in range(1, ROUNDS + 1):
        held = Held(round_, models[0], tuple(models[1:3]))
        update = (like + rng.laplace(size=first.size) * 0.005).astype(np.float32)
        memory = recall(context, client.recipe, 0, round_)
        job = Job(payload=b"", shard=None, round_=round_, partition=0, memory=memory)
        payload, left = client._encode(update, held, job)
        label = client._channel.label("update", round_, held)
        codec = client.recipe.wire.update_codec(client._channel.parts, round_)
        sent += decode(payload, label, client._channel.predicting(codec, held))[:size]
        made += update[:size]
        owed.append(left[:size])
        keep(context, client.recipe, 0, round_, Memory(residual=left))
        if round_ == lost_after:
            context = _context()
        models = [(models[0] + update).astype(np.float32), *models]
    return made, sent, owed


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_what_was_decoded_and_what_is_owed_are_all_updates(client, seed):
    made, sent, owed = _rounds(client, seed)
    assert np.abs(owed[-1]).max() > 1e-3
    np.testing.assert_allclose(sent + owed[-1], made, rtol=0, atol=1e-6)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), lost_after=st.integers(1, ROUNDS - 1))
def test_a_state_that_is_gone_costs_what_was_owed_then_and_no_more(client, seed, lost_after):
    made, sent, owed = _rounds(client, seed, lost_after)
    lost = owed[lost_after - 1]
    assert np.abs(lost).max() > 1e-3
    np.testing.assert_allclose(sent + owed[-1], made - lost, rtol=0, atol=1e-6)
