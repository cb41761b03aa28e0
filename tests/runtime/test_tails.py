"""Tails of one read-out against laws whose tails are known: normals, finite mixtures by enumeration, exponential plus
normal in closed form at 40 digits; each error within tol and within the reported bound."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp

import elbotree as et
from elbotree.runtime import tails
from elbotree.runtime.source_sums import Inputs
from elbotree.runtime.tails import Line
from elbotree.runtime.tilted_sources import Sources, TiltedSources, flatten, log_sinhc, powers

ROUNDING = 2e-13  # of the references themselves


def line(model: et.FeatureModel, v) -> Line:
    return Line.of(Inputs.of(model).read(np.atleast_2d(np.asarray(v, dtype=float)), np.zeros(1)))


@np.errstate(under="ignore")
def enumerated(model: et.FeatureModel, v, q: float) -> float:
    """log P(<v, x> > q) for atomic priors: the sum over all their points of normal tails."""
    points, logs = np.zeros(1), np.zeros(1)
    for d, prior in zip(v @ model.B, model.priors, strict=True):
        atoms, masses = prior.atoms
        points = np.add.outer(points, d * atoms).ravel()
        logs = np.add.outer(logs, np.log(masses)).ravel()
    sigma = model.noise_std * np.linalg.norm(v)
    return float(logsumexp(logs + log_ndtr((points + v @ model.offset - q) / sigma)))


def check(found, log_reference: float, tol: float = 1e-10) -> None:
    error = abs(math.expm1(float(found.log_value) - log_reference))
    floor = ROUNDING + 4e-16 * abs(log_reference)
    assert error <= tol
    assert error <= float(found.relative_error) + floor
    assert float(found.relative_error) <= tol
    assert float(found.relative_error) == pytest.approx(sum(float(part) for part in found.bound.values()))


class TestTiltedSources:
    PRIORS = (
        et.Bernoulli(0.3),
        et.Discrete([-1, 0.5, 2], [0.2, 0.3, 0.5]),
        et.Exponential(0.7),
        et.Gamma(2.5, 0.4),
        et.Gamma(3, 0.4),
        et.Uniform(-0.5, 2),
        et.Laplace(0.3, 0.5),
        et.SpikeSlab(0.2, et.Normal(1, 0.5)),
        et.SpikeSlab(0.2, et.Exponential(0.5)),
        et.Mixture([0.3, 0.7], [et.Normal(0, 1), et.Uniform(0, 1)]),
    )

    @pytest.mark.parametrize("s", [0.0, 0.4, -0.7, 1.2, 1e-3])
    def test_against_the_priors_own_transforms(self, s: float) -> None:
        sources = Sources.of([flatten(prior) for prior in self.PRIORS])
        at = np.full(len(self.PRIORS), s)
        tilted, kappa = sources.tilted(at)
        np.testing.assert_allclose(kappa, [prior.log_mgf(s) for prior in self.PRIORS], atol=3e-15)
        np.testing.assert_allclose(sources.log_mgf(at), kappa, atol=3e-15)
        for order, level in enumerate(sources.cumulants(at)):
            expected = [float(prior.log_partition(s, 0.0, order)) for prior in self.PRIORS]
            np.testing.assert_allclose(level, expected, rtol=1e-11, atol=1e-12)
        t = np.array([-3.0, -0.4, 0.0, 1e-6, 0.9, 7.0])
        rows = np.repeat(t[None], len(self.PRIORS), axis=0)
        each = np.array([prior.cf(t - 1j * s) / np.exp(prior.log_mgf(s)) for prior in self.PRIORS])
        np.testing.assert_allclose(tilted.product(rows), each.prod(axis=0), atol=1e-14)
        np.testing.assert_allclose(tilted.mgf(1j * rows), each.prod(axis=0), atol=1e-14)
        product, slopes = tilted.slopes(rows)
        np.testing.assert_allclose(product, each.prod(axis=0), atol=1e-14)
        ratios = [prior.cf(t - 1j * s, 1) / prior.cf(t - 1j * s) / 1j for prior in self.PRIORS]
        np.testing.assert_allclose(slopes, ratios, rtol=1e-10, atol=1e-10)
        assert (tilted.envelope(np.abs(rows)) >= np.abs(each.prod(axis=0)) - 1e-15).all()

    def test_mgf_off_the_imaginary_axis(self) -> None:
        alone = TiltedSources(1, Sources.of([flatten(et.Uniform(-1.0, 2.0))]).tilted(np.array([0.8]))[0].blocks)
        w = np.array([[0.3 + 2.0j, -1.5 + 0.1j, 1e-9j - 0.8]])

        def plain(z):
            return (np.exp(2 * z) - np.exp(-z)) / (3 * z)

        np.testing.assert_allclose(alone.mgf(w)[:2], plain(0.8 + w[0, :2]) / plain(0.8), rtol=1e-13)
        assert alone.mgf(w)[2] == pytest.approx(1 / plain(0.8), rel=1e-8)

    def test_a_component_held_fixed(self) -> None:
        sources = Sources.of([flatten(prior) for prior in (et.Bernoulli(0.3), et.Bernoulli(0.4))])
        (log_zero, at_zero), (log_one, at_one) = sources.conditioned(1)
        assert math.exp(log_zero) == pytest.approx(0.6)
        assert math.exp(log_one) == pytest.approx(0.4)
        s = np.array([0.5, 0.5])
        assert at_zero.log_mgf(s)[1] == pytest.approx(0.0, abs=1e-15)
        assert at_one.log_mgf(s)[1] == pytest.approx(0.5)

    def test_small_pieces(self) -> None:
        x = np.array([1e-9, 0.2, 0.2499999, 0.2500001, 3.0, 40.0, -0.7])
        exact = [[mpmath.log(mpmath.sinh(v) / v), mpmath.coth(v) - 1 / mpmath.mpf(v)] for v in x]
        value, slope, _, _ = log_sinhc(x)
        np.testing.assert_allclose(value, [float(e[0]) for e in exact], rtol=1e-14, atol=1e-16)
        np.testing.assert_allclose(slope, [float(e[1]) for e in exact], rtol=1e-13, atol=1e-9)
        angles = np.array([0.3, -1.7])
        np.testing.assert_allclose(powers(angles, 300), np.exp(1j * np.outer(angles, np.arange(300))), atol=1e-13)


class TestUpper:
    @pytest.mark.parametrize("q", [0.0, 1.0, -1.0, 5.0, 30.0, 80.0, 1000.0, -6.0, -30.0])
    def test_normal_law(self, q: float) -> None:
        model = et.FeatureModel(np.eye(3), [et.Normal(0, 1)] * 3, 0.3)
        check(line(model, [1.0, 2.0, -1.0]).upper(q, 1e-10), float(log_ndtr(-q / math.sqrt(6 * 1.09))))

    def test_finite_mixtures_at_random(self) -> None:
        rng = np.random.default_rng(1)
        deepest = 0.0
        for _ in range(25):
            m = int(rng.integers(1, 9))
            priors = [
                et.Bernoulli(10 ** rng.uniform(-6, -0.1))
                if rng.random() < 0.6
                else et.Discrete(rng.normal(size=3) * 2, rng.dirichlet([0.3] * 3))
                for _ in range(m)
            ]
            model = et.FeatureModel(rng.normal(size=(3, m)), priors, 10 ** rng.uniform(-1.5, 0), rng.normal(size=3))
            v = rng.normal(size=3)
            law = line(model, v)
            for k in (-3.0, 0.0, 0.4, 1.0, 2.5, 6.0):
                q = law.shift + law.mean + k * law.std
                reference = enumerated(model, v, q)
                if reference > -2e4:
                    deepest = min(deepest, reference)
                    check(law.upper(q, 1e-10), reference)
        assert deepest < -700  # below what float64 holds

    @pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
    @pytest.mark.parametrize("sigma", [0.01, 0.3])
    def test_exponential_plus_normal(self, rate: float, sigma: float) -> None:
        law = line(et.FeatureModel([[1.0]], [et.Exponential(1 / rate)], sigma), [1.0])
        with mpmath.workdps(40):
            for q in (-2 * sigma, 0.0, 0.7, 5.0, 60.0, 2000.0):
                r, s, x = mpmath.mpf(rate), mpmath.mpf(sigma), mpmath.mpf(q)
                exact = mpmath.ncdf(-x / s) + mpmath.exp(-r * x + (r * s) ** 2 / 2) * mpmath.ncdf(x / s - r * s)
                check(law.upper(q, 1e-10), float(mpmath.log(exact)))

    def test_bent_contour_next_to_a_pole(self) -> None:
        """P = 4e-226 from a gamma slab took tens of thousands of nodes on the straight contour."""
        prior = et.SpikeSlab(0.1, et.Gamma(2.5, 0.5))
        law = line(et.FeatureModel(np.eye(3), [prior, et.Bernoulli(0.2), et.Uniform(-1, 1)], 0.1), [1.0, 0.7, -0.4])
        found = law.upper(265.0, 1e-10)
        assert -540 < found.log_value < -500
        assert "step" in found.bound
        assert found.nodes < 500
        straight = law.contour(265.0 - law.shift, 265.0 - law.shift, 1e-10, 1)
        assert straight.count > 5000
        terms, _ = law.terms(straight, 1)
        y = straight.step * np.arange(straight.count) * (265.0 - law.shift)
        value = float((terms.real * np.cos(y) + terms.imag * np.sin(y)).sum())
        reference = straight.level - straight.c * (265.0 - law.shift) + math.log(value)
        assert abs(float(found.log_value) - reference) < 1e-10

    def test_modes_far_apart_are_split(self) -> None:
        """Between the atoms of a rare large jump the contour's terms cancel to nothing; conditional laws do not."""
        model = et.FeatureModel([[1.0]], [et.Bernoulli(1e-40)], 0.01)
        found = line(model, [1.0]).upper(0.5, 1e-10)
        check(found, enumerated(model, np.ones(1), 0.5))
        assert float(found.value) == pytest.approx(1e-40, rel=1e-10)

    def test_both_sides_add_to_one(self) -> None:
        model = et.FeatureModel(np.eye(2), [et.SpikeSlab(0.001, et.Exponential(3.0)), et.Bernoulli(0.5)], 0.2)
        law = line(model, [1.0, 0.3])
        for q in (-1.0, 0.1, 0.15, 0.4, 3.0):
            up, down = law.upper(q, 1e-11), law.reflected.upper(-q, 1e-11)
            assert float(up.value) + float(down.value) == pytest.approx(1.0, abs=3e-11)

    def test_looser_tolerances_take_fewer_nodes(self) -> None:
        law = line(et.FeatureModel(np.eye(2), [et.Bernoulli(0.1), et.Uniform(0, 1)], 0.05), [1.0, 0.5])
        nodes = [law.upper(1.4, tol).nodes for tol in (1e-3, 1e-6, 1e-12)]
        assert nodes == sorted(set(nodes))

    def test_depth_beyond_float64s_inputs_is_an_error(self) -> None:
        law = line(et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.01), [1.0])
        assert float(law.upper(1.6, 1e-10).log_value) < -1000
        with pytest.raises(
            et.ToleranceError, match=r"one bit of the threshold, or of what the inputs add up to, is worth a"
        ):
            law.upper(1000.0, 1e-10)

    def test_too_many_nodes_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tails, "_MAX_NODES", 30)
        law = line(et.FeatureModel([[1.0]], [et.Uniform(0.0, 1.0)], 0.01), [1.0])
        with pytest.raises(et.ToleranceError, match=r"would take [\d,]+ nodes for tol = 1e-10; raise noise_std"):
            law.upper(0.5, 1e-10)

    def test_no_noise_is_an_error(self) -> None:
        with pytest.raises(
            et.UnsupportedError, match=r"carries no Gaussian noise .* give the input model a small noise_std"
        ):
            line(et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.0), [1.0])

    def test_mixtures_of_normals_bring_their_own_noise(self) -> None:
        prior = et.Mixture([0.25, 0.75], [et.Normal(3.0, 0.5), et.Normal(-1.0, 0.2)])
        found = line(et.FeatureModel([[1.0]], [prior], 0.0), [2.0]).upper(9.0, 1e-10)
        parts = [math.log(0.25) + log_ndtr((6 - 9) / 1.0), math.log(0.75) + log_ndtr((-2 - 9) / 0.4)]
        check(found, float(logsumexp(parts)))


class TestCurves:
    @pytest.fixture
    def model(self) -> et.FeatureModel:
        rng = np.random.default_rng(4)
        priors = [et.Bernoulli(0.2), et.Discrete([0, 1, 3], [0.7, 0.2, 0.1]), et.Bernoulli(0.05)]
        return et.FeatureModel(rng.normal(size=(2, 3)), priors, 0.3, rng.normal(size=2))

    def test_tails_of_an_array(self, model: et.FeatureModel) -> None:
        v = np.array([1.0, -0.6])
        law = line(model, v)
        q = law.shift + law.mean + law.std * np.random.default_rng(0).uniform(-9, 14, size=300)
        found = law.upper_curve(q, 1e-10)
        reference = np.array([enumerated(model, v, float(x)) for x in q])
        error = np.abs(np.expm1(found.log_value - reference))
        assert reference.min() < -150
        assert (error <= 1e-10).all()
        assert (error <= found.relative_error + ROUNDING).all()

    def test_densities_of_an_array(self, model: et.FeatureModel) -> None:
        v = np.array([1.0, -0.6])
        law = line(model, v)
        x = np.linspace(-12, 15, 257)
        log_density, relative, nodes = law.curve(x, 1e-10, 0)
        sigma = 0.3 * np.linalg.norm(v)
        reference = np.full(len(x), -np.inf)
        for combination in itertools.product(*(zip(*p.atoms, strict=True) for p in model.priors)):
            center = v @ (model.B @ np.array([a for a, _ in combination]) + model.offset)
            weight = math.fsum(math.log(mass) for _, mass in combination)
            normal = -0.5 * ((x - center) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
            reference = np.logaddexp(reference, weight + normal)
        error = np.abs(np.expm1(log_density - reference))
        assert (error <= np.minimum(1e-10, relative + ROUNDING)).all()
        assert nodes < 3000  # contours are shared


class TestInverse:
    @pytest.mark.parametrize("log_p", [math.log(0.999), math.log(0.5), -2.0, -40.0, -3000.0])
    def test_isf_inverts_upper(self, log_p: float) -> None:
        law = line(et.FeatureModel(np.eye(2), [et.SpikeSlab(0.1, et.Exponential(0.5)), et.Uniform(-1, 1)], 0.2), [1, 1])
        q, error = law.isf(log_p, 1e-10)
        assert abs(float(law.upper(q, 1e-11).log_value) - log_p) < 1e-9
        assert error < 1e-6

    def test_normal_quantile(self) -> None:
        law = line(et.FeatureModel([[1.0]], [et.Normal(0, 1)], 0.0), [1.0])
        q, error = law.isf(math.log(0.025), 1e-12)
        assert q == pytest.approx(1.959963984540054, abs=1e-10)
        assert abs(q - 1.959963984540054) <= error


class TestGradient:
    @pytest.mark.parametrize("k", [-2.0, 0.3, 3.0, 9.0])
    def test_against_differences(self, k: float) -> None:
        priors = [et.SpikeSlab(0.3, et.Exponential(0.7)), et.Laplace(0, 0.5), et.Uniform(-1, 1), et.Gamma(2.5, 0.3)]
        sources = Sources.of([flatten(prior) for prior in priors])
        d, h = np.array([0.5, 1.0, -0.8, -0.3]), 1e-5
        base = Line(0.2, d, 0.09, sources, 0.0, np.zeros(len(d)))
        q = 0.2 + base.mean + k * base.std
        found = base.gradient(q, 1e-8)

        def at(shift=0.2, loadings=d, variance=0.09) -> float:
            return float(Line(shift, loadings, variance, sources, 0.0, np.zeros(len(d))).upper(q, 1e-12).log_value)

        assert found.log_value == pytest.approx(at(), abs=1e-9)
        assert found.shift == pytest.approx((at(shift=0.2 + h) - at(shift=0.2 - h)) / (2 * h), rel=1e-6)
        assert found.variance == pytest.approx((at(variance=0.09 + h) - at(variance=0.09 - h)) / (2 * h), rel=1e-6)
        for i, unit in enumerate(np.eye(4)):
            numeric = (at(loadings=d + h * unit) - at(loadings=d - h * unit)) / (2 * h)
            assert found.loadings[i] == pytest.approx(numeric, rel=2e-6, abs=1e-8)

    def test_costs_no_more_nodes_than_it_should(self) -> None:
        law = line(et.FeatureModel(np.eye(2), [et.Bernoulli(0.1), et.Uniform(0, 1)], 0.2), [1.0, 0.5])
        assert law.gradient(1.9, 1e-8).nodes <= 3 * law.upper(1.9, 1e-8).nodes
