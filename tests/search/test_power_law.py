from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress, t

from search.curve.power_law import fit_power_law

SIZES = [100, 200, 400, 800]


def test_an_exact_power_law_is_found_and_continued() -> None:
    law = fit_power_law(SIZES, [3.0 * n**-0.4 for n in SIZES])
    assert law.factor == pytest.approx(3.0)
    assert law.exponent.mean == pytest.approx(0.4)
    twice = law.predict(1600)
    assert twice.mean == pytest.approx(3.0 * 1600**-0.4)
    assert (twice.low, twice.high) == pytest.approx((twice.mean, twice.mean))


def test_the_intervals_are_those_of_linear_regression() -> None:
    random = np.random.default_rng(5)
    sizes = np.repeat(SIZES, 3)
    errors = 3.0 * sizes**-0.4 * np.exp(random.normal(scale=0.05, size=len(sizes)))
    law = fit_power_law(sizes.tolist(), errors.tolist())

    fitted = linregress(np.log(sizes), np.log(errors))
    quantile = t.ppf(0.975, len(sizes) - 2)
    assert law.exponent.mean == pytest.approx(-fitted[0])
    assert law.exponent.high - law.exponent.mean == pytest.approx(quantile * fitted[4])

    # The variance of a new value: that of the fitted line there, from its covariance, and the residual one.
    line, covariance = curve_fit(lambda x, a, b: a + b * x, np.log(sizes), np.log(errors))
    residuals = np.log(errors) - line[0] - line[1] * np.log(sizes)
    at = np.array([1.0, np.log(1600)])
    variance = at @ covariance @ at + np.square(residuals).sum() / (len(sizes) - 2)
    twice = law.predict(1600)
    assert np.log(twice.high / twice.mean) == pytest.approx(quantile * np.sqrt(variance), rel=1e-4)
    assert np.log(twice.mean / twice.low) == pytest.approx(quantile * np.sqrt(variance), rel=1e-4)


def test_the_interval_of_a_prediction_holds_new_errors_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    sizes, held = np.repeat(SIZES, 3), 0
    for _ in range(1000):
        errors = 3.0 * sizes**-0.4 * np.exp(random.normal(scale=0.1, size=len(sizes)))
        twice = fit_power_law(sizes.tolist(), errors.tolist()).predict(1600)
        held += twice.low <= 3.0 * 1600**-0.4 * np.exp(random.normal(scale=0.1)) <= twice.high
    assert 0.93 < held / 1000 < 0.97
