"""Flower's strategies run on decoded arrays, and carry their state through a checkpoint."""

import numpy as np
import pytest

import server.strategy  # noqa: F401  (imports Flower's task identity)
from server.aggregation import STRATEGIES, Aggregation, Update
from simulations.local_engine import LocalGrid

SIZE, TRAINED = 12, 8
OPTIONS = {
    "fedavgm": {"server_momentum": 0.9},
    "fedadam": {"eta": 0.01},
    "fedyogi": {"eta": 0.01},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1},
    "fedprox": {"proximal_mu": 0.1},
}


@pytest.fixture
def grid(tiny):
    return LocalGrid(tiny(), clients=None)


def _updates(seed, count=5):
    rng = np.random.default_rng(seed)
    return [Update(n, 10 * (n + 1), rng.normal(size=SIZE).astype(np.float32)) for n in range(count)]


def _run(name, grid, rounds, aggregation=None, current=None, first=1):
    aggregation = aggregation or Aggregation(name, OPTIONS.get(name, {}), trained=TRAINED)
    current = np.zeros(SIZE, np.float32) if current is None else current
    for round_ in range(first, first + rounds):
        aggregation.configure(round_, current, grid)
        current = aggregation(round_, current, iter(_updates(round_)))
    return aggregation, current


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_on_from_its_state(name, grid):
    _, whole = _run(name, grid, 4)
    half, current = _run(name, grid, 2)
    fresh = Aggregation(name, OPTIONS.get(name, {}), trained=TRAINED)
    fresh.restore({key: value.copy() for key, value in half.state().items()})
    _, resumed = _run(name, grid, 2, fresh, current, first=3)
    assert np.array_equal(whole, resumed)
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_steps_follow_from_updates_wherever_a_lossy_downlink_left_clients(name, grid):
    """What is sent lags behind the model, so that rounds do not begin where the last one ended."""
    rng = np.random.default_rng(7)
    exact, lossy = (Aggregation(name, OPTIONS.get(name, {}), trained=TRAINED) for _ in range(2))
    model = sent = np.zeros(SIZE, np.float32)
    for round_ in range(1, 6):
        steps = []
        for aggregation, current in ((exact, model), (lossy, sent)):
            aggregation.configure(round_, current, grid)
            steps.append(aggregation(round_, current, iter(_updates(round_))) - current)
        np.testing.assert_allclose(*steps, atol=1e-5)
        model = model + steps[0]
        sent = model + rng.normal(size=SIZE).astype(np.float32)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_what_is_carried_of_values_that_rest_stays(name, grid):
    aggregation, current = _run(name, grid, 1)
    before = {key: value.copy() for key, value in aggregation.state().items()}
    aggregation.configure(2, current, grid)
    aggregation(2, current, iter(_updates(2)), still=3)
    assert before
    for key, value in aggregation.state().items():
        np.testing.assert_array_equal(value[:3], before[key][:3])
        assert (value[3:] != before[key][3:]).all()


def test_fedavg_weighs_by_examples(grid):
    _, new = _run("fedavg", grid, 1)
    updates = _updates(1)
    wanted = np.average([u.values for u in updates], axis=0, weights=[u.examples for u in updates])
    np.testing.assert_allclose(new, wanted, rtol=1e-6)


def test_the_robust_ones_withstand_a_client_that_shouts(grid):
    for name in ("fedmedian", "fedtrimmedavg", "krum"):
        aggregation = Aggregation(name, OPTIONS.get(name, {}), trained=TRAINED)
        current = np.zeros(SIZE, np.float32)
        aggregation.configure(1, current, grid)
        shout = Update(9, 10, np.full(SIZE, 1e6, np.float32))
        assert np.abs(aggregation(1, current, [*_updates(1), shout])).max() < 10, name


def test_krum_tells_small_updates_of_a_large_model_apart(grid):
    """Distances of whole models, in float32, would be the rounding's."""
    rng = np.random.default_rng(0)
    current = rng.normal(size=SIZE).astype(np.float32) * 1e3
    honest, attack = (rng.normal(size=SIZE).astype(np.float32) * 1e-3 for _ in range(2))
    sizes = [1, 1.3, 1.5, 1.6, 1.7, 1.9, 2.5]  # the third is the nearest to five others
    shown = [attack * np.float32(-10)] * 2 + [honest * np.float32(size) for size in sizes]
    updates = [Update(i, 10, values) for i, values in enumerate(shown)]
    aggregation = Aggregation("krum", {"num_malicious_nodes": 2}, trained=TRAINED)
    aggregation.configure(1, current, grid)
    new = aggregation(1, current, iter(updates))
    assert new.dtype == np.float32
    assert np.array_equal(new, current + honest * np.float32(1.5))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_running_statistics_are_averaged_beside_an_optimiser(name, grid):
    _, new = _run(name, grid, 1)
    _, plain = _run("fedavg", grid, 1)
    assert np.array_equal(new[TRAINED:], plain[TRAINED:])
    if name != "fedavgm":  # whose first step is the mean
        assert not np.allclose(new[:TRAINED], plain[:TRAINED])


def test_fedprox_tells_clients_its_mu(grid):
    aggregation = Aggregation("fedprox", {"proximal_mu": 0.25}, trained=TRAINED)
    config = aggregation.configure(1, np.zeros(SIZE, np.float32), grid)
    assert config["proximal-mu"] == 0.25


def test_options_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="nothing that fedadam takes; it takes eta"):
        Aggregation("fedadam", {"etha": 1}, trained=1)
    with pytest.raises(ValueError, match="eta = 0: give a number above 0"):
        Aggregation("fedadam", {"eta": 0.0}, trained=1)
    with pytest.raises(ValueError, match="options for fedtrimmedavg"):
        Aggregation("fedtrimmedavg", {"beta": 0.7}, trained=1)
    with pytest.raises(ValueError, match="eta_l is nothing that fedyogi takes"):
        Aggregation("fedyogi", {"eta_l": 0.1}, trained=1)
    with pytest.raises(ValueError, match=r"is FedAvg without server.options.proximal_mu; set it"):
        Aggregation("fedprox", {}, trained=1)
    with pytest.raises(
        ValueError, match=r"beta = 0\.2: fedtrimmedavg cuts none of a cohort of 4; gi"
    ):
        Aggregation("fedtrimmedavg", {}, trained=1, cohort=4)
    with pytest.raises(ValueError, match="takes a cohort of 3 or more, and this one is of 2"):
        Aggregation("fedtrimmedavg", {}, trained=1, cohort=2)
    for cohort in (3, 4, 7):
        beta = float(f"{1e-4 + 1 / cohort:.4f}")
        assert Aggregation("fedtrimmedavg", {"beta": beta}, trained=1, cohort=cohort)
    with pytest.raises(ValueError, match=r"num_malicious_nodes = 1.5: give a whole number, as 1"):
        Aggregation("krum", {"num_malicious_nodes": 1.5}, trained=1)
    with pytest.raises(ValueError, match=r"num_malicious_nodes = 4: krum takes at most 3 of a co"):
        Aggregation("krum", {"num_malicious_nodes": 4}, trained=1, cohort=6)
    with pytest.raises(ValueError, match=r"server_momentum = 1: give a number below 1"):
        Aggregation("fedavgm", {"server_momentum": 1}, trained=1)
    with pytest.raises(ValueError, match=r"tau = 0: give a number above 0, as 0.001"):
        Aggregation("fedadam", {"tau": 0}, trained=1)


def test_no_updates_are_no_model(grid):
    for name in STRATEGIES:
        aggregation = Aggregation(name, OPTIONS.get(name, {}), trained=TRAINED)
        with pytest.raises(ValueError, match=r"no arrays|no update"):
            aggregation(1, np.zeros(SIZE, np.float32), [])
