"""A basis made of the codes gathers the generator's update, at no more error."""

import numpy as np
import pytest

from csg_core.exchange import Part
from simulations.studies.transform import bases, bits_and_error, table


def _parts():
    """An update in which a few of 40 codes have moved, and the kernels of those with them."""
    rng = np.random.default_rng(0)
    codes_SD = rng.standard_normal((40, 12))
    loud_S1 = np.where(np.arange(40) < 4, 1.0, 0.01)[:, None]
    moved_SD = loud_S1 * rng.standard_normal((40, 12))
    gradient_SV = loud_S1 * rng.standard_normal((40, 300))
    return codes_SD, moved_SD, gradient_SV.T @ codes_SD


def test_bases_are_orthogonal_and_keep_the_energy():
    codes_SD, moved_SD, update_VD = _parts()
    for _, basis_DD in bases(codes_SD, moved_SD):
        np.testing.assert_allclose(basis_DD.T @ basis_DD, np.eye(12), atol=1e-12)
        turned = update_VD @ basis_DD
        assert np.sum(turned**2) == pytest.approx(np.sum(update_VD**2))


def test_codes_that_moved_say_where_the_update_lies():
    codes_SD, moved_SD, update_VD = _parts()
    (_, as_it_is), _, (_, weighted) = bases(codes_SD, moved_SD)
    plain, plain_left = bits_and_error(update_VD @ as_it_is, 1.5, 1)
    turned, turned_left = bits_and_error(update_VD @ weighted, 1.5, 12)
    assert turned < 0.6 * plain
    assert turned_left < plain_left


def test_fine_steps_leave_nothing_out():
    _, left = bits_and_error(_parts()[2], 1e-3, 1)
    assert left < 1e-6


def test_the_table_has_a_row_for_each_basis():
    codes_SD, moved_SD, update_VD = _parts()
    parts = [Part("generator", update_VD.size), Part("codes", codes_SD.size)]
    first = np.concatenate([np.zeros(update_VD.size), codes_SD.ravel()]).astype(np.float32)
    update = np.concatenate([update_VD.ravel(), moved_SD.ravel()]).astype(np.float32)
    rows = table(first, update, parts, 12).splitlines()
    assert len(rows) == 5
    assert all(row.count("|") == 8 for row in rows)
