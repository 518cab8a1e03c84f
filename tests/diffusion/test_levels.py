"""Noise levels of a run, and those that a training step draws."""

import numpy as np
import pytest
from reverse_helpers import SCHEDULE, make_grid

from cdsde.diffusion.levels import indices


def test_every_level_is_taken_by_default():
    np.testing.assert_array_equal(indices(5), [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(indices(1), [0])


def test_strided_levels_are_even_and_distinct():
    for start in range(1, 60):
        np.testing.assert_array_equal(indices(start, start), indices(start))
        for steps in range(1, start + 1):
            levels = indices(start, steps)
            assert len(levels) == steps
            assert levels[0] == start - 1
            assert np.all(np.diff(levels) < 0)
            if steps > 1:
                assert levels[-1] == 0
                even = (start - 1) * (1 - np.arange(steps) / (steps - 1))
                assert np.abs(levels - even).max() < 0.501


@pytest.mark.parametrize(("start", "steps"), [(10, 0), (10, 11), (10, -3), (0, None)])
def test_impossible_numbers_of_steps(start, steps):
    number = start if steps is None else steps
    message = rf"steps is {number}; it must lie in 1\.\.{start}, the start level"
    with pytest.raises(ValueError, match=message):
        indices(start, steps)
    with pytest.raises(ValueError, match=message):
        make_grid(start, steps)


@pytest.mark.parametrize(("start", "steps"), [(1000, None), (500, 50), (300, 299), (7, 1), (1, 1)])
def test_grid(start, steps):
    grid = make_grid(start, steps)
    count = steps or start
    assert all(len(column) == count for column in grid)
    np.testing.assert_array_equal(grid.index, indices(start, steps))
    np.testing.assert_array_equal(grid.last, np.arange(count) == count - 1)
    np.testing.assert_array_equal(grid.alpha_bar, SCHEDULE.alpha_bar[grid.index])
    np.testing.assert_array_equal(grid.next_alpha_bar[:-1], grid.alpha_bar[1:])
    assert grid.next_alpha_bar[-1] == 1
    for column in (grid.alpha_bar, grid.next_alpha_bar, grid.beta):
        assert column.dtype == np.float32
    # The steps together go all the way.
    signal = np.prod(1 - grid.beta.astype(np.float64))
    assert signal == pytest.approx(float(grid.alpha_bar[0]), rel=1e-5)


def test_grid_takes_beta_from_the_table_where_it_can():
    np.testing.assert_array_equal(make_grid(1000).beta, SCHEDULE.beta[::-1])
    grid = make_grid(10, 7)
    gaps = -np.diff(np.append(grid.index, -1))
    assert set(gaps) == {1, 2}
    np.testing.assert_array_equal(grid.beta[gaps == 1], SCHEDULE.beta[grid.index[gaps == 1]])
    assert np.all(grid.beta[gaps == 2] > 1.9 * SCHEDULE.beta[grid.index[gaps == 2] - 1])


def test_levels_as_diffusers_spaces_them():
    np.testing.assert_array_equal(indices(1000, 4, "leading"), [750, 500, 250, 0])
    np.testing.assert_array_equal(indices(1000, 4, "trailing"), [999, 749, 499, 249])
    # Where S does not divide M, the start is kept nevertheless.
    np.testing.assert_array_equal(indices(10, 3, "leading"), [6, 3, 0])
    assert indices(500, 300, "leading")[0] == 498 and indices(850, 100, "leading")[0] == 841
    for spacing in ("leading", "trailing"):
        np.testing.assert_array_equal(indices(7, spacing=spacing), indices(7))


def test_levels_even_in_log_snr():
    log_snr = SCHEDULE.log_snr
    for start in (1, 2, 7, 250, 1000):
        for steps in {1, min(2, start), start // 3 + 1, max(start - 1, 1), start}:
            levels = indices(start, steps, "log_snr", log_snr)
            assert len(levels) == steps
            assert levels[0] == start - 1
            assert np.all(np.diff(levels) < 0)
            if steps > 1:
                assert levels[-1] == 0
    np.testing.assert_array_equal(indices(40, 40, "log_snr", log_snr), indices(40))
    levels = indices(1000, 8, "log_snr", log_snr)
    gaps = np.diff(log_snr[levels])
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.1)
    assert not np.array_equal(levels, indices(1000, 8))
