"""A fit in use: encoding points, the bound of each point, samples, and where checkpoints are told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import elbotree as et
from elbotree.cli import main
from elbotree.fitting import Fit
from elbotree.runtime.errors import InputError


@pytest.fixture
def fitted(form: dict[str, Any]) -> Fit:
    """A problem as a fit: what is asked of a fit here does not depend on how good it is."""
    form["encoder"][0] = {
        "family": "tilted",
        "C": [[1.5, 0.2]],
        "bias": [-0.4],
        "precision": 0.7,
        "base": {"kind": "bernoulli", "p": 0.35},
    }
    form["model"]["offset"] = [0.2, -0.1]
    problem = et.Problem.from_dict(form)
    return Fit(problem, et.evaluate(problem, tol=1e-6), (), "made for a test")


def rows() -> np.ndarray:
    return np.array([[0.0, 0.0], [1.3, -0.4], [-2.0, 0.9]])


def test_encode_gives_the_posteriors_mean_and_variance(fitted: Fit) -> None:
    mean, variance = fitted.encode(rows())
    # by hand: tilted Bernoulli has odds p/(1-p) e^{c - precision/2}; the normal's mean is c, its variance 0.25
    odds = 0.35 / 0.65 * np.exp(rows() @ [1.5, 0.2] - 0.4 - 0.35)
    p = odds / (1 + odds)
    np.testing.assert_allclose(mean, np.column_stack([p, rows() @ [0.1, 0.7]]), rtol=1e-12)
    np.testing.assert_allclose(variance, np.column_stack([p * (1 - p), np.full(3, 0.25)]), rtol=1e-12)


def test_the_bound_of_a_point_is_below_its_log_density(fitted: Fit) -> None:
    """p(x2) by hand: the Bernoulli feature summed, the normal one integrated in closed form."""
    model = fitted.model
    cov = np.outer(model.B[:, 1], model.B[:, 1]) + 0.6**2 * np.eye(2)
    density = np.zeros(3)
    for beta, mass in ((0.0, 0.6), (1.0, 0.4)):
        off = rows() - model.offset - beta * model.B[:, 0]
        quadratic = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
        density += mass * np.exp(-0.5 * quadratic) / (2 * np.pi * np.sqrt(np.linalg.det(cov)))
    bound = fitted.log_prob_bound(rows())
    assert bound.shape == (3,)
    assert np.all(bound < np.log(density))


def test_the_bound_is_exact_for_the_exact_posterior() -> None:
    """One normal feature: at the true posterior, ELBO = log p(x2)."""
    b, sigma, x = 0.8, 0.5, np.array([[-1.0], [0.3], [2.0]])
    precision = 1 + b**2 / sigma**2
    layer = et.Layer([[1.0]], [0.0], [0.0], "identity")
    p1 = et.FeatureModel([[1.0]], [et.Normal(0.0, 1.0)], 0.1)
    q = et.Posterior("normal", [[b / sigma**2 / precision]], [0.0], std=precision**-0.5)
    problem = et.Problem(layer, p1, et.FeatureModel([[b]], [et.Normal(0.0, 1.0)], sigma), et.Encoder([q]))
    fit = Fit(problem, et.evaluate(problem, tol=1e-6), (), "")
    variance = b**2 + sigma**2
    expected = -0.5 * (x[:, 0] ** 2 / variance + np.log(2 * np.pi * variance))
    np.testing.assert_allclose(fit.log_prob_bound(x), expected, rtol=1e-12)


def test_the_loss_is_minus_the_mean_of_the_bounds(fitted: Fit) -> None:
    problem = fitted.problem
    x2 = problem.layer(problem.input.sample(200_000, np.random.default_rng(3)))
    bounds = fitted.log_prob_bound(x2)
    error = bounds.std() / np.sqrt(len(bounds))
    assert abs(-bounds.mean() - fitted.values["L"].value) < 4 * error
    assert error < 0.02


def test_samples_have_the_models_moments(fitted: Fit) -> None:
    x = fitted.sample(100_000, np.random.default_rng(0))
    np.testing.assert_allclose(x.mean(axis=0), fitted.model.mean(), atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), fitted.model.covariance(), atol=0.03)


@pytest.mark.parametrize(
    ("x2", "message"),
    [(np.zeros((3, 4)), r"has shape \(3, 4\); the encoder takes rows of n2 = 2"), ([[np.nan, 0.0]], "not finite")],
)
def test_points_that_do_not_fit_are_refused(fitted: Fit, x2: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted.encode(x2)
    with pytest.raises(InputError, match=message):
        fitted.log_prob_bound(x2)


def test_a_fit_says_why_it_ended() -> None:
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    assert "limit of 1 iterations" in et.fit(layer, p1, 1, tol=1e-3, iterations=1).message
    done = et.fit(layer, p1, 1, tol=1e-3)
    assert "gradient norm" in done.message
    assert "limit" not in done.message


def test_the_command_line_keeps_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    problem = {
        "format": "elbotree-problem/1",
        "layer": {"A": [[1.0]], "w": [0.5], "u": [0.8], "psi": "relu"},
        "input": {"B": [[1.0]], "noise_std": 0.4, "priors": [{"kind": "bernoulli", "p": 0.3}]},
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    call = ["fit", str(tmp_path / "p.json"), "--features", "1", "--tol", "1e-2", "--format", "json"]
    kept = ["--checkpoint", str(tmp_path / "state")]
    runner = CliRunner()
    first = runner.invoke(main, [*call, *kept])
    assert first.exit_code == 0, first.output
    refused = runner.invoke(main, [*call, *kept])
    assert refused.exit_code == 1
    assert "go on from it with resume=True (--resume)" in refused.output
    again = runner.invoke(main, [*call, *kept, "--resume"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["terms"] == json.loads(first.stdout)["terms"]
    assert runner.invoke(main, [*call, "--resume"]).exit_code == 2
    lost = runner.invoke(main, [*call, "--out", str(tmp_path / "p.json" / "out")])
    assert lost.exit_code == 1
    assert "is a file; give the path of a folder" in lost.output
