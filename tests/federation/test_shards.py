"""Shards cover the images, follow their rule, and are the same in every process."""

import subprocess
import sys

import numpy as np
import pytest

from federation.data_sets import DataError
from federation.sections import DataConfig
from federation.shards import class_spread, shard_rows

LABELS = np.random.default_rng(0).integers(0, 10, 1200).astype(np.int64)
RULES = [
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 0.5},
    {"partition": "pathological", "classes_per_client": 2},
    {"partition": "shards", "shards_per_client": 2},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["partition"])
def test_every_image_belongs_to_one_client(rule):
    shards = shard_rows(DataConfig(clients=10, **rule), LABELS, 0)
    assert len(shards) == 10
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["partition"])
def test_some_of_the_images_are_shared_out_as_the_seed_draws_them(rule):
    shards, others = (
        shard_rows(DataConfig(clients=10, images=400, **rule), LABELS, seed) for seed in (0, 1)
    )
    drawn = np.sort(np.concatenate(shards))
    assert len(np.unique(drawn)) == len(drawn) == 400
    assert drawn.max() > 1000  # from all of them
    assert not np.array_equal(drawn, np.sort(np.concatenate(others)))


def test_rules_show_in_the_spread():
    spread = {
        rule["partition"]: class_spread(
            shard_rows(DataConfig(clients=10, **rule), LABELS, 0), LABELS, 10
        )
        for rule in RULES
    }
    assert all(counts.sum() == len(LABELS) for counts in spread.values())
    assert ((spread["pathological"] > 0).sum(axis=1) == 2).all()
    assert (spread["shards"].sum(axis=1) == len(LABELS) / 10).all()
    assert ((spread["shards"] > 0).sum(axis=1) <= 4).all()  # a piece may lie over a class's end
    assert spread["iid"].std(axis=0).mean() < spread["dirichlet"].std(axis=0).mean()


def test_the_seed_decides():
    config = DataConfig(clients=4)
    first, again = shard_rows(config, LABELS, 1), shard_rows(config, LABELS, 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], shard_rows(config, LABELS, 2)[0])


@pytest.mark.slow
def test_another_process_finds_the_same_shards(tmp_path):
    code = (
        "import numpy as np; from federation.sections import DataConfig;"
        "from federation.shards import shard_rows;"
        "labels = np.random.default_rng(0).integers(0, 10, 1200).astype(np.int64);"
        "config = DataConfig(clients=5, partition='dirichlet');"
        "print([part.tolist() for part in shard_rows(config, labels, 3)])"
    )
    env = {"CSG_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}  # a cache of its own
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    ours = shard_rows(DataConfig(clients=5, partition="dirichlet"), LABELS, 3)
    assert done.stdout.strip() == str([part.tolist() for part in ours]), done.stderr


def test_a_damaged_file_of_shards_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path))
    first = shard_rows(DataConfig(clients=4), LABELS, 0)
    (path,) = tmp_path.glob("shards-*")
    whole = path.read_bytes()
    changed = [whole[:p] + bytes([whole[p] ^ 0xFF]) + whole[p + 1 :] for p in range(0, 160, 3)]
    for damage in (whole[:100], *changed):
        path.write_bytes(damage)
        again = shard_rows(DataConfig(clients=4), LABELS, 0)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_rules_that_cannot_be_met_are_named():
    with pytest.raises(DataError, match="only 1,200 images"):
        shard_rows(DataConfig(clients=1201), LABELS, 0)
    with pytest.raises(DataError, match=r"data.images 1,201: there are only 1,200"):
        shard_rows(DataConfig(images=1201), LABELS, 0)
    with pytest.raises(DataError, match="only 5 images"):
        shard_rows(DataConfig(clients=10, images=5), LABELS, 0)
    with pytest.raises(DataError, match=r"dirichlet over 120 clients with alpha 0\.01"):
        shard_rows(DataConfig(clients=120, partition="dirichlet", alpha=0.01), LABELS, 0)
    with pytest.raises(DataError, match=r"601, data.shards_per_client 2: there are only 1,200 im"):
        shard_rows(DataConfig(clients=601, partition="shards"), LABELS, 0)
    with pytest.raises(DataError, match=r"200, data.min_images 10: there are only 1,200 images"):
        shard_rows(DataConfig(clients=200, partition="dirichlet", alpha=1000), LABELS, 0)
    with pytest.raises(DataError, match=r"data.classes_per_client 11: there are only 10"):
        shard_rows(DataConfig(partition="pathological", classes_per_client=11), LABELS, 0)


@pytest.mark.parametrize("seed", range(4))
def test_tries_with_shares_that_are_no_numbers_come_to_whole_shards(seed, recwarn):
    shards = shard_rows(DataConfig(clients=5, partition="dirichlet", alpha=1e-2), LABELS, seed)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(LABELS)))
    assert not [of for of in recwarn if issubclass(of.category, RuntimeWarning)]
