"""Joint laws of read-outs of one layer against enumeration of the sources' atoms with a quadrature in b written here,
products of normal tails, differences of probabilities, and identities (Lemma 3.4)."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp
from scipy.stats import multivariate_normal

import elbotree as et
from elbotree.runtime.boxes import box_probability
from elbotree.runtime.source_sums import Inputs

INF = math.inf
N = 3


@pytest.fixture(scope="module")
def model() -> et.FeatureModel:
    rng = np.random.default_rng(0)
    priors = [et.Bernoulli(0.2), et.Discrete([0, 1, 2], [0.5, 0.3, 0.2]), et.Bernoulli(0.05)]
    return et.FeatureModel(rng.normal(size=(N, 3)), priors, 0.3, rng.normal(size=N) * 0.2)


def layer(psi: str, seed: int = 1) -> et.Layer:
    rng = np.random.default_rng(seed)
    A, w, u = rng.normal(size=(N, N)) / 2 + 0.5 * np.eye(N), rng.normal(size=N), rng.normal(size=N)
    return et.Layer(A, w, u, psi=psi, offset=rng.normal(size=N) * 0.1, threshold=0.1)


def combinations(model: et.FeatureModel):
    """(mean of x, log probability) of every combination of atoms."""
    for combination in itertools.product(*(list(zip(*p.atoms, strict=True)) for p in model.priors)):
        z = np.array([a for a, _ in combination])
        yield model.B @ z + model.offset, math.fsum(math.log(mass) for _, mass in combination)


@np.errstate(under="ignore")
def log_tail(layer: et.Layer, model: et.FeatureModel, v, q: float, panels: int = 350) -> float:
    """log P(<v, f> > q): given the atoms, (b, <v, y>) is bivariate normal; b by 60-point panels, <v, y> by log_ndtr."""
    a, ab, kappa = layer.A.T @ v, layer.A.T @ layer.u, float(v @ layer.w)
    var_b, cov = model.noise_std**2 * ab @ ab, model.noise_std**2 * a @ ab
    spread = math.sqrt(model.noise_std**2 * a @ a - cov**2 / var_b)
    std_b = math.sqrt(var_b)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    reach = 60 * std_b
    total = []
    for x, log_mass in combinations(model):
        y = layer.A @ x + layer.offset
        center = float(layer.u @ y + layer.threshold)
        cuts = [t for t in layer.activation.breaks if abs(t - center) < reach]
        edges = np.unique(np.concatenate([np.linspace(center - reach, center + reach, panels), cuts]))
        half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
        b = (middle[:, None] + half[:, None] * nodes).ravel()
        logs = -0.5 * ((b - center) / std_b) ** 2 - math.log(std_b * math.sqrt(2 * math.pi))
        mean = float(v @ y) + cov / var_b * (b - center) + kappa * layer.activation(b)
        total.append(log_mass + logsumexp(logs + log_ndtr((mean - q) / spread), b=(half[:, None] * weights).ravel()))
    return float(logsumexp(total))


def check(found, reference: float, tol: float = 1e-10) -> None:
    error = abs(math.expm1(float(found.log_value) - reference))
    assert error <= tol
    assert error <= float(found.relative_error) + 1e-12
    assert float(found.relative_error) <= tol
    assert float(found.log_value) <= 0


class TestBoxes:
    @pytest.fixture
    def law(self):
        return Inputs.of(et.FeatureModel(np.eye(2), [et.Normal(0, 1)] * 2, 0.5)).read(np.eye(2), np.zeros(2))

    @pytest.mark.parametrize("q", [(0, 0), (1, 2), (5, 8), (-1, 3), (-5, -5), (-1, -0.2), (30, -30)])
    def test_independent_orthants(self, law, q) -> None:
        std = math.sqrt(1.25)
        check(box_probability(law, [(q[0], INF), (q[1], INF)], 1e-10), float(log_ndtr(-np.array(q) / std).sum()))

    @pytest.mark.parametrize("window", [(-1, 1), (3, 4), (30, 31), (-0.001, 5), (-50, 20)])
    def test_intervals(self, law, window) -> None:
        with mpmath.workdps(300):
            std = mpmath.sqrt(mpmath.mpf(5) / 4)
            inside = mpmath.log(mpmath.ncdf(window[1] / std) - mpmath.ncdf(window[0] / std))
        reference = float(inside) + float(log_ndtr(-1 / math.sqrt(1.25)))
        check(box_probability(law, [window, (1, INF)], 1e-10), reference)

    def test_density_in_one_read_out(self, law) -> None:
        found = box_probability(law, [(2, 2), (-INF, -4)], 1e-10)
        reference = -0.5 * 4 / 1.25 - 0.5 * math.log(2 * math.pi * 1.25) + float(log_ndtr(-4 / math.sqrt(1.25)))
        assert float(found.log_value) == pytest.approx(reference, abs=1e-10)

    def test_nothing_to_bound(self, law) -> None:
        assert float(box_probability(law, [(-INF, INF), (-INF, INF)], 1e-10).value) == 1.0

    def test_correlated_normal_pair(self) -> None:
        model = et.FeatureModel(np.eye(2), [et.Normal(0, 1)] * 2, 0.1)
        V = np.array([[1.0, 0.2], [0.9, 0.5]])
        joint = model.marginal(V)
        cov = 1.01 * V @ V.T
        found = joint.tail([1.0, 0.5], 1e-9)
        reference = multivariate_normal(np.zeros(2), cov, abseps=1e-12, releps=1e-12).cdf([-1.0, -0.5])
        assert float(found.value) == pytest.approx(reference, rel=1e-7)

    def test_orthant_of_atomic_sources(self, model) -> None:
        """Rows orthogonal in the noise, so that given the atoms the orthant is a product."""
        V = np.array([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.0]])
        joint = model.marginal(V)
        sigma = 0.3 * math.sqrt(1.25)
        for q in ([0.5, 0.3], [2.0, 2.5], [4.0, 5.0], [-1.0, 3.0]):
            terms = [lm + log_ndtr((V @ x - q) / sigma).sum() for x, lm in combinations(model)]
            check(joint.tail(q), float(logsumexp(terms)))

    def test_three_read_outs(self, model) -> None:
        joint = model.marginal(np.eye(3))
        q = np.array([0.4, 0.1, 1.0])
        terms = [lm + log_ndtr((x - q) / 0.3).sum() for x, lm in combinations(model)]
        check(joint.tail(q, 1e-6), float(logsumexp(terms)), 1e-6)

    def test_heavy_sources_add_up(self) -> None:
        """P(S1 > a, S2 > c) + P(S1 > a, S2 <= c) = P(S1 > a), with exponential and uniform sources."""
        priors = [et.SpikeSlab(0.3, et.Exponential(0.3)), et.Uniform(-1, 1), et.Laplace(0, 0.2)]
        joint = et.FeatureModel(np.eye(3), priors, 0.3).marginal([[1.0, 0.4, 0.0], [0.2, -1.0, 0.7]])
        one = et.FeatureModel(np.eye(3), priors, 0.3).marginal([1.0, 0.4, 0.0])
        parts = [joint.probability([(2.0, INF), side], 1e-10) for side in ((0.3, INF), (-INF, 0.3))]
        assert sum(float(p.value) for p in parts) == pytest.approx(float(one.tail(2.0).value), rel=2e-10)

    def test_degenerate_noise_is_an_error(self, model) -> None:
        joint = model.marginal([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        with pytest.raises(et.UnsupportedError, match="leave out read-outs that are multiples of others"):
            joint.tail([0.0, 1.0])


class TestAffine:
    def test_every_way_to_be_affine(self, model) -> None:
        """psi plays no part, is affine, or v does not see it: all equal the law of a row on x1."""
        v, q = np.array([0.3, -1.0, 0.5]), 1.2
        plain = layer("relu")
        silent = et.Layer(plain.A, np.zeros(N), plain.u, "relu", plain.offset, 0.1)
        row = model.marginal(plain.A.T @ v)
        assert float(et.joint(silent, model, v).tail(q).log_value) == pytest.approx(
            float(row.tail(q - v @ plain.offset).log_value), abs=1e-10
        )
        blind = v - plain.w * (plain.w @ v) / (plain.w @ plain.w)
        rest = et.joint(silent, model, blind)
        assert float(et.joint(plain, model, blind).tail(q).log_value) == pytest.approx(
            float(rest.tail(q).log_value), abs=1e-10
        )
        identity = et.joint(et.Layer(plain.A, plain.w, plain.u, "identity", plain.offset, 0.1), model, v)
        turned = v + (v @ plain.w) * plain.u
        constant = turned @ plain.offset + 0.1 * (v @ plain.w)
        other = model.marginal(plain.A.T @ turned)
        assert float(identity.tail(q).log_value) == pytest.approx(float(other.tail(q - constant).log_value), abs=1e-10)

    def test_moments_against_enumeration(self, model) -> None:
        joint = model.marginal([1.0, -0.5, 0.2])
        v, s2 = np.array([1.0, -0.5, 0.2]), 0.09 * 1.29
        for k in range(5):
            exact = 0.0
            for x, lm in combinations(model):
                m = v @ x
                exact += math.exp(lm) * (1, m, m**2 + s2, m**3 + 3 * m * s2, m**4 + 6 * m**2 * s2 + 3 * s2**2)[k]
            found = joint.moment(k)
            assert abs(float(found.value) - exact) <= float(found.error) + 1e-13
            assert float(joint.expect(lambda s, k=k: s**k).value) == pytest.approx(exact, abs=1e-9)

    @pytest.mark.parametrize(("offset", "sigma"), [((1e7, 3e7), 1e-3), ((1e3, -7e3), 1e-4), ((1e5, 2e5), 1.0)])
    def test_a_large_offset_whose_rounding_a_threshold_feels(self, offset, sigma) -> None:
        """0.1 and 0.3 are no binary fractions: the read-out's offset is known to some 1e-16 of its terms only, which the
        error says, or the tolerance is refused."""
        mp = mpmath.mpf
        joint = et.FeatureModel(np.eye(2), [et.Bernoulli(0.3)] * 2, sigma, offset).marginal([0.1, 0.3])
        with mpmath.workdps(40):
            center = mp(0.1) * mp(offset[0]) + mp(0.3) * mp(offset[1])
            s = mp(sigma) * mpmath.sqrt(mp(0.1) ** 2 + mp(0.3) ** 2)
            for k in (2, 6):
                q = float(center + mp(0.4) + k * s)
                terms = [
                    mp(0.3) ** (a + b)
                    * (1 - mp(0.3)) ** (2 - a - b)
                    * mpmath.ncdf((center + a * mp(0.1) + b * mp(0.3) - q) / s)
                    for a in (0, 1)
                    for b in (0, 1)
                ]
                exact = sum(terms)
                found = joint.tail(q, 1e-3)
                assert abs(mpmath.exp(mp(float(found.log_value))) / exact - 1) <= float(found.relative_error)
                if sigma < 1:
                    with pytest.raises(et.ToleranceError, match="move a large offset out of the input"):
                        joint.tail(q, 1e-10)

    def test_an_interval_that_holds_nearly_everything_stays_below_one(self, model) -> None:
        found = model.marginal([1.0, -0.5, 0.2]).probability([(-50.0, 60.0)])
        assert float(found.value) <= 1.0
        assert 1.0 - float(found.value) <= float(found.error)

    def test_expectation_with_a_kink(self, model) -> None:
        v = np.array([1.0, -0.5, 0.2])
        sigma = 0.3 * np.linalg.norm(v)
        exact = 0.0
        for x, lm in combinations(model):
            m = v @ x
            density = math.exp(-0.5 * (m / sigma) ** 2) / math.sqrt(2 * math.pi)
            exact += math.exp(lm) * (m * math.exp(log_ndtr(m / sigma)) + sigma * density)
        found = model.marginal(v).expect(lambda s: np.maximum(s, 0), breaks=[0.0])
        assert abs(float(found.value) - exact) <= float(found.error)
        assert float(found.error) < 1e-9

    def test_shapes(self, model) -> None:
        one, two = model.marginal([1.0, 0.0, 0.0]), model.marginal(np.eye(3)[:2])
        assert np.shape(one.tail(0.3).value) == ()
        assert one.tail([0.3]).value.shape == (1,)
        assert one.cdf(np.zeros((2, 3))).log_value.shape == (2, 3)
        assert one.pdf(np.zeros((2, 3))).value.shape == (2, 3)
        assert two.tail(np.zeros((2, 2)), 1e-4).relative_error.shape == (2,)
        assert two.pdf([0.1, 0.2], 1e-4).value.shape == ()
        assert float(one.tail(0.3)) + float(one.cdf(0.3)) == pytest.approx(1, abs=1e-10)

    def test_quantiles(self, model) -> None:
        joint = model.marginal([1.0, -0.5, 0.2])
        for p in (0.4, 1e-3, 1e-200):
            assert float(joint.tail(float(joint.isf(p).value)).value) == pytest.approx(p, rel=1e-9)
            assert float(joint.cdf(float(joint.quantile(p).value)).value) == pytest.approx(p, rel=1e-9)
        deep = joint.isf(log_p=-5000.0)
        assert float(joint.log_tail(float(deep.value)).value) == pytest.approx(-5000, abs=1e-8)

    @pytest.mark.parametrize("psi", ["identity", "relu"])
    def test_gradient_in_the_weights(self, model, psi) -> None:
        """psi = relu with v orthogonal to w: there the gradient in v is the part orthogonal to w."""
        base, h, q = layer(psi), 1e-5, 2.4
        v = np.array([0.7, -0.4, 0.9])
        v = v if psi == "identity" else v - base.w * (base.w @ v) / (base.w @ base.w)

        def at(A=base.A, v=v) -> float:
            made = et.Layer(A, base.w, base.u, psi, base.offset, base.threshold)
            return float(et.joint(made, model, v).tail(q, 1e-12).log_value)

        found = et.joint(base, model, v).tail_gradient(q)
        for i, unit in enumerate(np.eye(N)):
            if psi == "relu":
                unit = unit - base.w * (base.w @ unit) / (base.w @ base.w)
            assert found.V @ unit == pytest.approx((at(v=v + h * unit) - at(v=v - h * unit)) / (2 * h), abs=1e-6)
            for j in range(N):
                E = np.zeros((N, N))
                E[i, j] = h
                assert found.A[i, j] == pytest.approx((at(A=base.A + E) - at(A=base.A - E)) / (2 * h), abs=1e-6)
        joint = et.joint(base, model, v)
        assert found.threshold == pytest.approx(-float(joint.pdf(q).value) / float(joint.tail(q).value), rel=1e-8)


class TestThroughPsi:
    V = np.array([0.8, -0.5, 0.6])

    @pytest.mark.parametrize("psi", ["relu", "leaky_relu", "hardtanh", "abs", "heaviside"])
    @pytest.mark.parametrize("k", [-1.5, 0.5, 4.0, 8.0])
    def test_piecewise_linear(self, model, psi, k) -> None:
        made = layer(psi)
        q = 0.5 + 1.2 * k
        reference = log_tail(made, model, self.V, q)
        check(et.joint(made, model, self.V).tail(q), reference)

    @pytest.mark.parametrize(("psi", "k"), [("tanh", 1.0), ("tanh", 8.0), ("gelu", 4.0), ("elu", 3.0), ("square", 6.0)])
    def test_smooth(self, model, psi, k) -> None:
        made = layer(psi)
        q = 0.5 + 1.2 * k
        check(et.joint(made, model, self.V).tail(q), log_tail(made, model, self.V, q))

    def test_a_second_mode_far_out_is_found(self, model) -> None:
        """exp(b) reaches a high threshold with b eight deviations out, where nothing near the centre points to it."""
        made = layer("exp")
        v = self.V if self.V @ made.w > 0 else -self.V
        q = 400.0
        check(et.joint(made, model, v).tail(q), log_tail(made, model, v, q, panels=6000))

    def test_near_one_the_complement_speaks(self, model) -> None:
        made = layer("relu")
        joint = et.joint(made, model, self.V)
        below = joint.cdf(-3.0)
        assert -300 < float(below.log_value) < -20
        assert float(joint.tail(-3.0).log_value) == pytest.approx(-float(below.value), rel=1e-6)

    def test_tail_and_cdf_add_up(self, model) -> None:
        for psi in ("relu", "tanh"):
            joint = et.joint(layer(psi), model, self.V)
            assert float(joint.tail(0.4).value) + float(joint.cdf(0.4).value) == pytest.approx(1, abs=3e-10)

    @pytest.mark.parametrize("psi", ["relu", "tanh"])
    def test_density_is_the_derivative(self, model, psi) -> None:
        joint, h = et.joint(layer(psi), model, self.V), 1e-3
        up, down = (float(joint.tail(1.0 + s * h, 1e-11).value) for s in (1, -1))
        assert float(joint.pdf(1.0).value) == pytest.approx((down - up) / (2 * h), rel=1e-5)

    def test_quantile(self, model) -> None:
        joint = et.joint(layer("relu"), model, self.V)
        for p in (0.7, 1e-6):
            found = joint.isf(p, 1e-8)
            assert float(joint.tail(float(found.value)).value) == pytest.approx(p, rel=1e-7)

    def test_moments(self, model) -> None:
        made = layer("relu")
        rows = made(model.sample(400_000, np.random.default_rng(5))) @ self.V
        joint = et.joint(made, model, self.V)
        for k in (1, 2, 3):
            spread = np.std(rows**k) / math.sqrt(len(rows))
            assert abs(float(joint.moment(k, 1e-6).value) - np.mean(rows**k)) < 5 * spread

    def test_two_read_outs(self, model) -> None:
        """P(S1 > a, S2 > c) against the two half planes, and against samples."""
        made, V = layer("relu"), np.array([[0.8, -0.5, 0.6], [0.1, 0.9, 0.4]])
        joint, alone = et.joint(made, model, V), et.joint(made, model, V[0])
        parts = [joint.probability([(1.0, INF), side], 1e-6) for side in ((0.4, INF), (-INF, 0.4))]
        assert sum(float(p.value) for p in parts) == pytest.approx(float(alone.tail(1.0).value), rel=2e-6)
        rows = made(model.sample(200_000, np.random.default_rng(6))) @ V.T
        share = float(np.mean((rows > [1.0, 0.4]).all(axis=1)))
        assert abs(float(parts[0].value) - share) < 5 * math.sqrt(share / len(rows))

    @pytest.mark.parametrize("psi", ["softplus", "gelu", "relu"])
    def test_separate_modes_are_split_into_components(self, psi) -> None:
        """Noise a hundredth of what rare features move: contours lose their digits, the components' positive sum does not."""
        priors = [et.Discrete([0.0, 1.5], [1 - 1e-5, 1e-5]), et.Discrete([-1.0, 2.0], [0.99, 0.01])]
        tight = et.FeatureModel([[1.0, 0.4], [-0.6, 0.9], [0.3, 0.2]], priors, 0.02)
        made = layer(psi)
        rows = made(tight.sample(2000, np.random.default_rng(0))) @ self.V
        for q in (np.quantile(rows, 0.9), rows.max() + 0.4):
            check(et.joint(made, tight, self.V).tail(q, 1e-9), log_tail(made, tight, self.V, q, panels=800), 1e-9)

    @pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
    def test_a_loose_tolerance_has_a_true_error_too(self, tol) -> None:
        """Deep in the tail, with b much noisier than <v, y> given b, aliases grow from the middle of a panel to its ends."""
        rng = np.random.default_rng(3)
        narrow = et.FeatureModel(rng.normal(size=(3, 1)), [et.Bernoulli(0.3)], 0.2)
        for seed, k in itertools.product(range(3), (3, 6, 9)):
            made = layer("sigmoid", seed)
            rows = made(narrow.sample(2000, rng)) @ self.V
            q = float(rows.mean() + k * rows.std())
            found = et.joint(made, narrow, self.V).tail(q, tol)
            error = abs(math.expm1(float(found.log_value) - log_tail(made, narrow, self.V, q, panels=800)))
            assert error <= float(found.relative_error) <= tol

    @pytest.mark.parametrize(
        ("text", "w", "off", "q"),
        [("exp(-30*b**2)", 1.1, 0.02, 0.8), ("sin(4*b)", 3.3, 0.1, 3.3), ("sin(4*b)", 3.3, 0.1, 4.5)],
    )
    def test_no_narrow_peak_in_b_is_missed(self, text, w, off, q) -> None:
        """v near u and psi steep: q is reached at several b, each within a small part of the noise of b."""
        layer = et.Layer(np.eye(2), [w, 0.2], [1.0, 0.0], text)
        p1 = et.FeatureModel(np.eye(2), [et.Normal(0.0, 1.0), et.Normal(0.5, 0.3)], 0.5)
        v, psi = np.array([1.0, off]), {"e": lambda b: np.exp(-30 * b**2), "s": lambda b: np.sin(4 * b)}[text[0]]
        b = np.linspace(-10.0, 10.0, 2_000_001)  # b = x_1 ~ N(0, 1.25), <v, y> given b is N(b + off / 2, off^2 0.34)
        std = off * math.sqrt(0.34)
        with np.errstate(under="ignore"):
            apart = (q - (v @ layer.w) * psi(b) - b - off / 2) / std
            weights = np.exp(-(b**2) / 2.5) / math.sqrt(2.5 * math.pi) * (b[1] - b[0])
            tail = weights @ np.exp(log_ndtr(-apart))
            density = weights @ np.exp(-(apart**2) / 2) / math.sqrt(2 * math.pi)
        joint = et.joint(layer, p1, v)
        assert abs(float(joint.log_tail(q, 1e-8).value) - math.log(tail)) < 1e-8
        assert abs(float(joint.log_pdf(q, 1e-8).value) - math.log(density / std)) < 1e-8

    def test_peaks_too_narrow_to_be_found_are_refused(self) -> None:
        layer = et.Layer(np.eye(2), [3.3, 0.2], [1.0, 0.0], "sin(4*b)")
        p1 = et.FeatureModel(np.eye(2), [et.Normal(0.0, 1.0), et.Normal(0.5, 0.3)], 0.5)
        with pytest.raises(et.ToleranceError, match="does not end within 3,000 panels"):
            et.joint(layer, p1, [1.0, 1e-4]).tail(3.3, 1e-8)

    def test_a_rare_wide_slab_refuses_nothing(self) -> None:
        """One piece of psi is reached by the slab alone, far from what the spike reaches; P is that of the spike."""
        made = et.Layer([[-0.59, 2.77], [0.33, 0.89]], [0.01, -0.9], [0.09, 0.36], "hardtanh", threshold=1.62)
        B, v = [[-0.79], [-0.79]], np.array([-1.02, -0.29])
        rare = et.FeatureModel(B, [et.SpikeSlab(5e-30, et.Normal(0.3, 2.8))], 0.25)
        spike = et.FeatureModel(B, [et.Discrete([0.0], [1.0])], 0.25)
        check(et.joint(made, rare, v).tail(0.3, 1e-9), log_tail(made, spike, v, 0.3), 1e-9)

    def test_what_is_nearly_certain_costs_nothing(self, model) -> None:
        """Far below everything P is 1 up to e^-1000 and less, whatever it would take to resolve that."""
        found = et.joint(layer("leaky_relu"), model, self.V).tail(-60.0, 1e-8)
        assert -1e-200 < float(found.log_value) <= 0

    @pytest.mark.parametrize("far", [60.0, 1e4])
    def test_an_interval_with_one_end_far_out(self, model, far) -> None:
        """What lies beyond the far end is nothing: the interval is the tail, at any width."""
        joint = et.joint(layer("relu"), model, self.V)
        tail = float(joint.tail(1.0, 1e-12).log_value)
        check(joint.probability([(1.0, far)]), tail)

    @pytest.mark.parametrize("k", [1.5, 3.0, 4.5])
    def test_panels_that_take_the_density_of_b(self, model, k) -> None:
        """Where the half line does not bind at some b, the density of b is used there, to what the whole asks for."""
        made = layer("square")
        q = 0.5 + 1.2 * k
        check(et.joint(made, model, self.V).tail(q), log_tail(made, model, self.V, q))

    @pytest.mark.parametrize("psi", ["relu", "tanh"])
    def test_functions_of_b_alone(self, psi) -> None:
        """One dimension: f = y + w psi(y - theta) is increasing, so that P(f > q) = P(y > f^-1(q))."""
        model = et.FeatureModel([[1.0, 2.0]], [et.Bernoulli(0.3), et.Bernoulli(0.2)], 0.5)
        made = et.Layer([[1.0]], [1.5], [1.0], psi, threshold=-0.3)
        for y in (-0.5, 0.3, 2.0, 8.0):
            q = float(made(np.array([[y]]))[0, 0])
            check(et.joint(made, model, [1.0]).tail(q), float(model.marginal([1.0]).tail(y, 1e-13).log_value))

    def test_an_atom(self) -> None:
        """f = y - relu(y) = min(y, 0) is 0 with probability P(y > 0): jumps in the distribution, no density there."""
        model = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.5)
        joint = et.joint(et.Layer([[1.0]], [-1.0], [1.0], "relu"), model, [1.0])
        below = float(model.marginal([1.0]).cdf(0.0).value)
        assert float(joint.tail(-1e-9).value) == pytest.approx(1 - below, abs=1e-8)
        assert float(joint.cdf(-1e-9).value) == pytest.approx(below, abs=1e-8)
        assert float(joint.tail(0.1).log_value) == -INF
        with pytest.raises(et.UnsupportedError, match="its law may have atoms and its density is not given"):
            joint.pdf(-0.5)

    def test_a_quantile_over_an_atom_is_the_generalised_inverse(self) -> None:
        """y - hardtanh(y) is 0 for |y| < 1 and y -+ 1 beyond: quantiles below, on and above the jump, from those of y."""
        model = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.7)
        y = model.marginal([1.0])
        joint = et.joint(et.Layer([[1.0]], [-1.0], [1.0], "hardtanh"), model, [1.0])
        low, high = float(y.cdf(-1.0).value), float(y.cdf(1.0).value)
        for p in (0.5 * low, 1.001 * low, 0.5 * (low + high), 0.999 * high, 0.5 * (1 + high)):
            at = float(y.quantile(p).value)
            exact = at - max(-1.0, min(1.0, at))
            for found in (joint.quantile(p, 1e-9), joint.isf(1 - p, 1e-9)):
                assert abs(float(found.value) - exact) <= float(found.error) + 1e-12
                assert float(found.error) <= 1e-6
        below = et.joint(et.Layer([[1.0]], [-1.0], [1.0], "relu", threshold=-0.5), model, [1.0])  # y - relu(y - 0.5)
        assert float(below.quantile(0.999).value) == pytest.approx(0.5, abs=1e-15)
        assert float(below.isf(1e-30).value) == pytest.approx(0.5, abs=1e-15)

    def test_a_pole_in_reach_is_an_error(self, model) -> None:
        with pytest.raises(et.UnsupportedError, match=r"psi \(reciprocal\) .* b = 0"):
            et.joint(layer("reciprocal"), model, self.V).tail(3.0)


class TestRefusals:
    def test_shapes_of_V(self, model) -> None:
        with pytest.raises(et.InputError, match=r"`V` has 4 rows; the joint law is there for 1, 2 or 3 read-outs"):
            et.joint(layer("relu"), model, np.zeros((4, N)))
        with pytest.raises(et.InputError, match=r"so it must be \(t, 3\)"):
            et.joint(layer("relu"), model, [1.0, 2.0])
        with pytest.raises(et.InputError, match=r"they must be equal"):
            et.joint(layer("relu"), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.1), np.zeros(N))

    def test_points_and_probabilities(self, model) -> None:
        joint = model.marginal([1.0, 0.0, 0.0])
        with pytest.raises(et.InputError, match="`x` holds nan; every entry must be finite"):
            joint.tail(math.nan)
        with pytest.raises(et.InputError, match="strictly between 0 and 1"):
            joint.isf(0.0)
        with pytest.raises(et.InputError, match="give either `p` or `log_p`"):
            joint.isf()
        with pytest.raises(et.InputError, match="moments are there for k = 0"):
            joint.moment(5)
        with pytest.raises(et.InputError, match=r"`tol` is 0.0"):
            joint.tail(1.0, tol=0.0)
        with pytest.raises(et.InputError, match=r"it must be a pair low <= high"):
            joint.probability([(2.0, 1.0)])
        with pytest.raises(et.UnsupportedError, match="is for one read-out"):
            model.marginal(np.eye(3)[:2]).isf(0.1)
        with pytest.raises(et.UnsupportedError, match=r"psi \(relu\) is in between"):
            et.joint(layer("relu"), model, [1.0, 0.0, 0.0]).tail_gradient(1.0)

    def test_no_noise(self) -> None:
        quiet = et.FeatureModel(np.eye(2), [et.Bernoulli(0.3)] * 2, 0.0)
        with pytest.raises(et.UnsupportedError, match="carries no Gaussian noise"):
            quiet.marginal([1.0, 0.0]).tail(0.5)
        with pytest.raises(et.UnsupportedError, match="degenerate"):
            quiet.marginal(np.eye(2)).tail([0.5, 0.5])
