"""A replay sends what rounds send: nothing is lost without a loss, and coarse codecs lose more."""

import numpy as np
import pytest

from csg_core.codecs import codec_named
from simulations.studies.replay import record, replay, table


@pytest.fixture(scope="module")
def recording():
    data = {"name": "digits", "clients": 3, "partition": "iid"}
    return record("resnet20", data, rounds=3, images=64)


def test_what_is_recorded_is_training(recording):
    assert recording.updates.shape == (3, 2, recording.first.size)
    assert np.abs(recording.updates).max(axis=2).min() > 0
    assert recording.judges.shape[1:] == (3, 32, 32)


def test_without_a_loss_nothing_changes(recording):
    found = replay(recording, "fp32")
    assert found.up == found.down == 4 * recording.first.size
    assert found.server < 1e-6
    assert found.clients < 1e-6


def test_finer_steps_take_more_bytes_and_change_less(recording):
    coarse, fine = (replay(recording, f"ecsq:step={step},fine={step}") for step in (1.5, 0.5))
    assert fine.up > 1.5 * coarse.up
    assert fine.server < coarse.server
    assert fine.clients < coarse.clients


@pytest.mark.parametrize("line", ["ecsq", "ecsq:step=1", "ecsq:step=2.2", "ecsq:dct=false"])
def test_bytes_to_expect_are_those_of_training(recording, line):
    """A quarter off at most: with error feedback, updates are less smooth than without."""
    about = codec_named(line).bytes_about(recording.parts)
    assert replay(recording, line).up == pytest.approx(about, rel=0.25)


def test_the_table_has_a_row_for_each_codec(recording):
    rows = table(recording, ("fp32", "ecsq")).splitlines()
    assert [row.count("|") for row in rows] == [6] * 4
