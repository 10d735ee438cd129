"""Peers get the same work as ours, run in their own processes, and a failure is named."""

import json
from dataclasses import replace

import pytest
import torch

from csg_core import ModelSpec, build
from federation.data_sets import DataError
from simulations.bench.peers import side_by_side
from simulations.bench.peers.arms import ARMS, BARE, BASE, FROM_FLOWER
from simulations.bench.peers.environments import OWN, Environment, interpreter_of
from simulations.bench.peers.plain import ResNet20, Work
from simulations.bench.peers.tables import ratio, split, table
from simulations.bench.peers.work import Asked, write_work
from simulations.command import StudyError


def _found(seconds, accuracy=0.5):
    return {"round": seconds, "wall": 60.0, "begin": 4.0, "peak_mb": 700.0,
            "test_accuracy": accuracy, "rounds": [seconds + 5, seconds]}  # fmt: skip


def _content(*turns, failed=None):
    names = {ARMS[arm].environment.name for turn in turns for arm in turn}
    return {
        "rounds": 3,
        "clients": 10,
        "images": 1000,
        "test_images": 200,
        "environments": {
            name: {"packages": [], "torch": "2.13.0", "torch_alone_mb": 200.0} for name in names
        },
        "turns": list(turns),
        "failed": failed or {},
    }


def test_the_plain_network_is_ours():
    ours, plain = build(ModelSpec(parametrization="dense"), seed=3), ResNet20()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), ours.eval()(images))


def test_all_are_given_the_same_images_shards_and_first_values(tmp_path):
    recipe, images = write_work(tmp_path, "digits", Asked(clients=3, images=60, rounds=2))
    work = Work.of(tmp_path)
    assert (
        images
        == {"images": 60, "test_images": 12}
        == {
            "images": sum(len(work.shard(client)) for client in range(3)),
            "test_images": len(work.test()),
        }
    )
    first = build(recipe.model, seed=recipe.run.seed).state_dict()
    torch.testing.assert_close(work.network().state_dict(), first)
    assert (work.rounds, work.lr, work.batch_size) == (2, recipe.train.lr, recipe.train.batch_size)


def test_ratios_are_within_a_turn():
    slow_turn = {BASE: _found(20.0), "flower-ray": _found(80.0)}
    content = _content({BASE: _found(10.0), "flower-ray": _found(30.0)}, slow_turn, slow_turn)
    assert ratio("flower-ray", BASE, content) == 4.0
    assert ratio("pfl", BASE, content) is None


def test_the_table_says_how_often_what_was_run():
    turn = {BASE: _found(20.0), "flower-ray": _found(30.0), "pfl": _found(40.0)}
    again = {BASE: _found(20.0), "flower-ray": _found(50.0)}
    said = table(_content(turn, again))
    assert "| Flower on Ray, a CPU a client | 40.00 | 2.00 |" in said
    assert (
        "200 to test on; 2 of 3 arms 2 times, in turns, of which seconds are medians; rat" in said
    )


def test_the_table_says_what_the_distance_is_made_of_and_what_was_not_measured():
    steps = zip(FROM_FLOWER, (30.0, 24.0, 16.0, 10.0), strict=True)
    turn = {BASE: _found(20.0, 0.4), **{arm: _found(seconds) for arm, seconds in steps}}
    said = table(_content(turn, failed={"pfl": "does not install"}))
    assert "| csg-fl, fp32 | 20.00 | 1.00 | 9.0 | 60.0 | 700 | 200 | 40.00 % |" in said
    assert "Not measured: pfl (does not install)." in said


def test_what_the_distance_to_flower_is_made_of_is_said_by_turn():
    arms = (*FROM_FLOWER, BARE)
    first, second = (
        {arm: _found(seconds) for arm, seconds in zip(arms, of, strict=True)}
        for of in ((30.0, 24.0, 16.0, 10.0, 8.0), (33.0, 24.0, 16.0, 10.0, 5.0))
    )
    said = split(_content(first, second))
    assert said.startswith(
        "Flower on Ray, a CPU a client, takes 3.15 (3.00, 3.30) times as long a round as csg-fl, "
        "workers, precision auto: the images' format in memory 1.31 (1.25, 1.38), precision 1.50 ("
    )
    assert said.endswith("The latter takes 1.62 (1.25, 2.00) times as long as its bare steps, a pr"
                         "ocess a core.")  # fmt: skip
    assert "precision 1.50, the engine and what else a client does 1.60." in split(_content(first))
    ends = {arm: second[arm] for arm in (FROM_FLOWER[0], FROM_FLOWER[-1], BARE)}
    said = split(_content(first, ends))
    assert "auto: in the first turn the images' format in memory 1.25, precision 1.50, the" in said
    assert split(_content({BASE: _found(20.0)})) == ""


def test_a_python_that_is_not_here_is_named(tmp_path):
    odd = Environment(name="odd", python="3.99", packages=("numpy",))
    with pytest.raises(StudyError, match=r"needs Python 3\.99"):
        interpreter_of(odd, tmp_path)


def test_an_environment_that_cannot_be_made_leaves_the_other_arms(monkeypatch):
    odd = Environment(name="odd", python="3.99", packages=("numpy",))
    monkeypatch.setitem(ARMS, "pfl", replace(ARMS["pfl"], environment=odd))
    asked = Asked(clients=2, images=40, rounds=2)
    found = side_by_side.measure("digits", asked, arms=("pfl", BARE), turns=1)
    assert found["failed"] == {"pfl": "needs Python 3.99, which is not here"}
    assert list(found["turns"][0]) == [BARE]


@pytest.mark.slow
def test_ours_and_flower_on_ray_side_by_side(monkeypatch):
    asked = Asked(clients=2, images=40, rounds=2)
    monkeypatch.setitem(ARMS, "flower-ray", replace(ARMS["flower-ray"], environment=OWN))
    arms = ("ours-fp32", "flower-ray", BARE)
    found = side_by_side.measure("digits", asked, arms=arms, turns=1)
    assert found["failed"] == {}
    (turn,) = found["turns"]
    assert turn[BARE]["round"] < turn["flower-ray"]["round"]
    for arm in ("ours-fp32", "flower-ray"):
        assert len(turn[arm]["rounds"]) == 2
        assert 0 < turn[arm]["begin"] < turn[arm]["wall"]
        assert turn[arm]["peak_mb"] > 100
        assert 0 <= turn[arm]["test_accuracy"] <= 1
    said = side_by_side.tables(json.loads(json.dumps(found)))["peers"]
    assert "| csg-fl, fp32 |" in said
    assert "2 rounds of 2 clients, 40 images, 8 to test on. " in said


def test_more_images_than_there_are_are_refused():
    with pytest.raises(DataError, match="2,000 images are asked for; there are 1,437"):
        side_by_side.measure("digits", Asked(clients=2, images=2_000, rounds=2), arms=(BASE,))
