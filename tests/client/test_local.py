"""A client trains from exactly what it received, and sends exactly what csg_core says travels."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from client.job import Job, TrainingError
from client.local import LocalClient
from client.memory import NOTHING, Memory
from client.shard import Shard, Shards, own_folder, partition_of
from client.training import Losses
from csg_core import GROUPS, build, exchanged, manifest, pack
from csg_core.broadcast import Held
from csg_core.codecs import codec_named
from csg_core.evaluation import evaluate
from csg_core.payload import Label, PayloadError, body_of, decode, digest_of, encode
from csg_core.sender import Sender
from federation.data_sets import DataError
from federation.messages import EvaluationReport
from federation.sources import load_images

FP32 = codec_named("fp32")


def _label(recipe, kind, round_=1, model=None):
    found = manifest(build(recipe.model), recipe.train.travelling())
    digest = digest_of(_model(recipe) if model is None else model)
    return Label(fingerprint=found.fingerprint, parts=found.parts, round=round_, kind=kind,
                 version=round_, digest=digest)  # fmt: skip


def _model(recipe):
    return pack(build(recipe.model, seed=5), recipe.train.travelling())


def _first(recipe, round_=1):
    rng = np.random.default_rng(0)
    return encode(_model(recipe), _label(recipe, "model", round_), FP32, rng)


def _job(payload, shard, **more):
    return Job(payload=payload, shard=shard, **more)


def _train(recipe, client=None, shard=None, *, round_=1, **more):
    client = client or LocalClient(recipe)
    shard = shard or Shards(recipe, client.device)[0]
    return client.train(_job(_first(recipe, round_), shard, round_=round_, partition=0, **more))


def _update(recipe, trained, round_=1):
    return decode(trained.payload, _label(recipe, "update", round_), FP32)


def test_a_round_is_the_same_whatever_the_client_did_before(tiny):
    recipe = tiny()
    client = LocalClient(recipe)
    shards = Shards(recipe, client.device)
    fresh = _train(recipe)
    client.train(_job(_first(recipe), shards[2], round_=1, partition=2))
    again = _train(recipe, client, shards[0])
    assert again.payload == fresh.payload
    assert again.report.examples == len(shards[0].train_rows)
    assert again.report.loss_after < again.report.loss_before


def test_a_client_that_receives_has_what_it_received_whatever_was_done_to_the_model(tiny):
    recipe = tiny()
    client, payload = LocalClient(recipe), _first(recipe)
    job = _job(payload, Shards(recipe, client.device)[0], round_=1, partition=0)
    for untrained in (False, True, False):
        client.receive(job, untrained=untrained)
        assert np.array_equal(pack(client.model), _model(recipe))
        if not untrained:
            client.fit(job)
            assert not np.array_equal(pack(client.model), _model(recipe))


def test_a_generator_that_is_trained_out_of_turn_is_owed_what_it_was_before(tiny):
    class Heedless(LocalClient):
        def fit(self, _job):
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.01)
            return Losses(1.0, 1.0, 1.0)

    wire = {"deltas": True, "generator_until": 0, "uplink": "ternary"}
    recipe = tiny(wire=wire)
    client = Heedless(recipe)
    sender = Sender(client._channel, client._first.values)
    sender.advance(client._first.values, 1, np.random.default_rng(0))
    shard = Shards(recipe, client.device)[0]
    still = manifest(build(recipe.model)).count("generator")
    before = np.random.default_rng(1).normal(size=client._first.values.size).astype(np.float32)
    for memory, owed in ((NOTHING, 0 * before), (Memory(residual=before), before)):
        job = _job(sender.message(0), shard, round_=1, partition=0, memory=memory)
        left = client.train(job).memory.residual
        assert np.array_equal(left[:still], owed[:still])
        assert not np.array_equal(left[still:], owed[still:])


def test_rounds_and_partitions_draw_differently(tiny):
    recipe = tiny()
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    one = client.train(_job(_first(recipe), shard, round_=1, partition=0))
    other = client.train(_job(_first(recipe), shard, round_=1, partition=1))
    later = client.train(_job(_first(recipe, 2), shard, round_=2, partition=0))
    updates = [_update(recipe, one), _update(recipe, other), _update(recipe, later, 2)]
    assert not np.array_equal(updates[0], updates[1])
    assert not np.array_equal(updates[0], updates[2])


def test_statistics_that_are_no_number_are_not_kept(tiny, monkeypatch):
    """They do not travel, and would be refused in every round from then on."""
    fit = LocalClient.fit

    def broken(self, job):
        losses = fit(self, job)
        next(b for n, b in self.model.named_buffers() if n.endswith("running_var"))[0] = torch.inf
        return losses

    monkeypatch.setattr(LocalClient, "fit", broken)
    recipe = tiny(train={"batch_norm": "local"}, data={"holdout": 0.1})
    with pytest.raises(TrainingError, match="and a value of the model is no number; lower train"):
        _train(recipe)


@pytest.mark.parametrize("policy", ["average", "local_statistics", "local"])
def test_norms_travel_or_stay_as_the_policy_says(tiny, policy):
    stays = policy != "average"
    recipe = tiny(train={"batch_norm": policy}, data={"holdout": 0.1 * stays})
    trained = _train(recipe)
    sizes = {group: manifest(build(recipe.model)).count(group) for group in GROUPS}
    kept = {"average": 0, "local_statistics": sizes["statistics"]}.get(
        policy, sizes["statistics"] + sizes["norms"]
    )
    assert (0 if trained.memory.kept is None else trained.memory.kept.size) == kept
    assert _update(recipe, trained).size == sum(sizes.values()) - kept


def test_what_a_client_keeps_comes_back_to_it(tiny):
    recipe = tiny(train={"batch_norm": "local"}, data={"holdout": 0.1})
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    first = _train(recipe, client, shard)
    second = _train(recipe, client, shard, round_=2, memory=first.memory)
    anew = _train(recipe, client, shard, round_=2)
    assert not np.array_equal(second.memory.kept, anew.memory.kept)


def test_a_client_evaluates_with_the_norms_that_it_kept(tiny):
    recipe = tiny(train={"batch_norm": "local"}, data={"holdout": 0.2})
    client = LocalClient(recipe)
    shards = Shards(recipe, client.device)
    shard, memory = shards[0], _train(recipe, client, shards[0]).memory
    model = pack(client.model, recipe.train.travelling())
    wanted = evaluate(client.model, shard.images, rows=shard.holdout_rows)
    _train(recipe, client, shards[1])
    payload = encode(model, _label(recipe, "model", 1, model), FP32, np.random.default_rng(0))
    report, after = client.evaluate(payload, shard, round_=1, partition=0, memory=memory)
    assert report == EvaluationReport(partition=0, **asdict(wanted))
    assert after == NOTHING, "what it kept of training stays as it is, and of its round"


def test_a_client_of_one_image_holds_none_out_and_keeps_what_it_was_sent(tiny):
    recipe = tiny(train={"batch_norm": "local"}, data={"holdout": 0.2}, wire={"deltas": True})
    client = LocalClient(recipe)
    shard = replace(Shards(recipe, client.device)[0], holdout_rows=torch.arange(0))
    channel = client._channel
    sender = Sender(channel, client._first.values)
    sender.advance(client._first.values + np.float32(0.1), 1, np.random.default_rng(0))
    report, after = client.evaluate(sender.message(0), shard, round_=1, partition=0)
    assert report == EvaluationReport(partition=0, examples=0, loss=0.0, accuracy=0.0)
    assert after.held.version == 1


def _trained_part(recipe, trained):
    size = _label(recipe, "update").size - manifest(build(recipe.model)).count("statistics")
    return _update(recipe, trained)[:size]


def test_the_proximal_gradient_is_that_of_the_paper(tiny):
    """After two plain steps on all images, the pull has acted once: by - lr mu (w_1 - w_0)."""
    whole = {"batch_size": 2000, "momentum": 0.0, "weight_decay": 0.0}
    one, two = (tiny(train={**whole, "local_epochs": epochs}) for epochs in (1, 2))
    first, plain = _trained_part(one, _train(one)), _trained_part(two, _train(two))
    pulled = _trained_part(two, _train(two, proximal_mu=3.0))
    np.testing.assert_allclose(pulled - plain, -two.train.lr * 3.0 * first, atol=1e-6)
    assert np.abs(first).max() > 1e-3


def test_clipping_bounds_what_a_step_does(tiny):
    settings = {"batch_size": 2000, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.01}
    recipe = tiny(train=settings)
    step = np.linalg.norm(_trained_part(recipe, _train(recipe)))
    assert step == pytest.approx(recipe.train.lr * 0.01, rel=1e-3)


def test_a_diverging_client_says_so(tiny):
    with pytest.raises(TrainingError, match=r"lower train\.lr"):
        _train(tiny(train={"lr": 1e18}))


def test_another_models_payload_is_refused(tiny):
    other = tiny(model={"code_size": 8})
    recipe = tiny()
    client = LocalClient(recipe)
    with pytest.raises(PayloadError):
        client.train(_job(_first(other), Shards(recipe, client.device)[0], round_=1, partition=0))


def test_a_client_without_images_says_so(tiny):
    recipe = tiny()
    client = LocalClient(recipe)
    images = Shards(recipe, client.device)[0].images
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(TrainingError, match="no images"):
        _train(recipe, client, Shard(images, none, none))


def test_all_clients_share_one_array_of_images(tiny):
    data = {"images": 1437, "clients": 100, "holdout": 0.2}
    recipe = tiny(data=data, train={"batch_norm": "local"})
    shards, restarted = (Shards(recipe, torch.device("cpu")) for _ in range(2))
    assert len({shards[n].images.images.data_ptr() for n in range(100)}) == 1
    rows = torch.cat(
        [torch.cat([shards[n].train_rows, restarted[n].holdout_rows]) for n in range(100)]
    )
    assert sorted(rows.tolist()) == list(range(1437))
    with pytest.raises(DataError, match="use 0 to 99"):
        shards[100]


def test_a_folder_of_own_pictures_trains(tiny, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("3", "9"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    recipe = tiny()
    client = LocalClient(recipe)
    shard = own_folder(recipe, client.device, str(tmp_path), 3)
    assert shard.images.labels.tolist() == [3] * 4 + [9] * 4
    assert shard.images.mean == load_images("digits", None, "train").mean
    assert _train(recipe, client, shard).report.examples == 8


@pytest.mark.parametrize("config", [{}, {"partition-id": -1}, {"partition-id": "0"}])
def test_a_client_needs_a_partition(config):
    with pytest.raises(DataError, match="partition-id is"):
        partition_of(config)


def test_every_update_is_rounded_by_draws_of_its_own(tiny):
    recipe = tiny(wire={"uplink": "uniform:bits=1", "feedback": False})
    client = LocalClient(recipe)
    held = Held(0, _model(recipe))
    update = np.random.default_rng(0).normal(size=held.values.size).astype(np.float32)
    bodies = {}
    for round_, partition in 2 * [(1, 0), (1, 1), (2, 0), (2, 1)]:
        job = _job(b"", None, round_=round_, partition=partition)
        body = bytes(body_of(client._encode(update, held, job)[0]))
        assert bodies.setdefault((round_, partition), body) == body
    assert len(set(bodies.values())) == 4


def test_without_feedback_nothing_is_kept_of_what_the_codec_left_out(tiny):
    lossy = {"uplink": "uniform:bits=3"}
    kept = _train(tiny(wire=lossy)).memory
    assert np.abs(kept.residual).max() > 0
    recipe = tiny(wire={**lossy, "feedback": False})
    fresh, later = _train(recipe), _train(recipe, memory=kept)
    assert fresh.memory.residual is None
    assert later.memory.residual is None
    assert later.payload == fresh.payload
    assert _train(tiny(wire=lossy), memory=kept).payload != fresh.payload


def test_only_what_is_exchanged_is_sent(tiny):
    recipe = tiny()
    assert _update(recipe, _train(recipe)).size == sum(
        tensor.numel() for tensor in exchanged(build(recipe.model)).values()
    )
