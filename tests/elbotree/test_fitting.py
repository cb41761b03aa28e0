"""A fit in use: encoding points, the bound of each point, samples, and where checkpoints are told of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import elbotree as et
from elbotree.cli import main
from elbotree.fitting import Fit
from elbotree.runtime.checkpoints import Step
from elbotree.runtime.errors import InputError
from elbotree.runtime.storage import load_folder, save_folder
from elbotree.verbs.learning import step_text


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
    [(np.zeros((3, 4)), r"has shape \(3, 4\); the encoder takes rows of n2 = 2"), ([[np.nan, 0.0]], "must be finite")],
)
def test_points_that_do_not_fit_are_refused(fitted: Fit, x2: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted.encode(x2)
    with pytest.raises(InputError, match=message):
        fitted.log_prob_bound(x2)


@pytest.mark.parametrize("N", [-1, 1.5, "many", 10**12])
def test_so_many_rows_are_not_drawn(fitted: Fit, N: Any) -> None:
    with pytest.raises(InputError, match="`N` is"):
        fitted.sample(N)


def test_a_fit_says_why_it_ended() -> None:
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    assert "limit of 1 iterations" in et.fit(layer, p1, 1, tol=1e-3, iterations=1).message
    done = et.fit(layer, p1, 1, tol=1e-3)
    assert "gradient norm" in done.message
    assert "limit" not in done.message


@pytest.fixture(scope="module")
def crowded() -> Fit:
    """More features than one coordinate can tell apart, from two starts."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    return et.fit(layer, p1, 3, "bernoulli", tol=1e-3, starts=2)


def test_all_starts_are_reported_and_the_best_is_kept(crowded: Fit) -> None:
    assert [start.name for start in crowded.starts] == ["propagated", "pursuit from random rows"]
    kept = [start for start in crowded.starts if start.kept]
    assert len(kept) == 1
    losses = [start.loss for start in crowded.starts if start.loss is not None]
    assert len(losses) == 2
    assert kept[0].loss == min(losses)
    assert kept[0].iterations == len(crowded.history)
    assert crowded.values["L"].value == pytest.approx(kept[0].loss, abs=2e-3)


def test_history_tells_terms_tolerance_and_time_of_each_iteration(crowded: Fit) -> None:
    for step in crowded.history:
        assert set(step.terms) == {"L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3"}
        assert step.terms["L"] == step.loss == pytest.approx(step.terms["R1"] + step.terms["R2"] + step.terms["R3"])
        assert 1e-4 <= step.tol <= 1e-3  # coarse first, a tenth of what was asked for last
        assert 0 < step.duration <= step.seconds
        assert step.gradient_norm > 0
        assert 0 < step.error < 1e-2
    assert crowded.history[-1].error <= 1e-3 * max(1.0, abs(crowded.history[-1].loss))


def test_features_that_died_are_told_and_pruning_keeps_the_loss(crowded: Fit) -> None:
    """A feature switched off by hand: its posterior is its prior whatever x2 is."""
    off = et.Posterior("bernoulli", [[0.0]], [-1.0])
    q = et.Encoder([*crowded.encoder, off])
    dead = et.Bernoulli(1 / (1 + np.e))
    model = crowded.model
    more = et.FeatureModel(np.hstack([model.B, [[0.0]]]), [*model.priors, dead], model.noise_std, model.offset)
    problem = et.Problem(crowded.problem.layer, crowded.problem.input, more, q)
    with_it = replace(crowded, problem=problem, information=(*crowded.information, 0.0))
    assert len(with_it.information) - 1 in with_it.dead
    assert "died" in repr(with_it)
    pruned = with_it.pruned()
    assert pruned.model.m == with_it.model.m - len(with_it.dead)
    assert pruned.dead == ()
    assert "pruned of" in pruned.message
    assert pruned.values["L"].value == pytest.approx(crowded.values["L"].value, abs=4e-3)
    assert pruned.pruned() is pruned


def test_information_is_what_R1_is_made_of(crowded: Fit) -> None:
    assert sum(crowded.information) == pytest.approx(float(crowded.values["R1"].value), abs=1e-4)


def test_the_law_of_a_read_out_is_the_models(fitted: Fit) -> None:
    x = fitted.sample(200_000, np.random.default_rng(1)) @ [0.6, -1.0]
    tail = float(fitted.marginal([0.6, -1.0]).tail(0.3).value)
    assert np.mean(x > 0.3) == pytest.approx(tail, abs=4 * np.sqrt(tail / len(x)))


def test_a_fit_is_read_back_with_its_starts_and_information(crowded: Fit, tmp_path: Path) -> None:
    crowded.save(tmp_path)
    again = et.load(tmp_path)
    assert isinstance(again, Fit)
    for name in ("history", "starts", "information", "noise_floor", "message"):
        assert getattr(again, name) == getattr(crowded, name)
    assert again.problem.to_dict() == crowded.problem.to_dict()  # to the last bit: no scale comes in between


def test_a_feature_is_dead_below_a_thousandth_of_a_nat(fitted: Fit) -> None:
    assert replace(fitted, information=(9.9e-4, 1.1e-3)).dead == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "elbotree-fit/1"}, "`format` is 'elbotree-fit/1'; this version reads 'elbotree-fit/2'"),
        ({"information": [0.1]}, "`information` has 1 numbers; the model has m2 = 3 features"),
        ({"starts": [{}]}, r"`starts\[0\]` lacks the key 'name'"),
        ({"history": None}, "is not the cfg.json of a fit"),
    ],
)
def test_a_cfg_that_does_not_fit_is_refused(crowded: Fit, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    crowded.save(tmp_path)
    cfg, arrays = load_folder(tmp_path)
    save_folder(tmp_path, {**cfg, **change}, arrays)
    with pytest.raises(InputError, match=message):
        et.load(tmp_path)


def test_features_and_priors_are_drawn(fitted: Fit, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = fitted.plot(tmp_path / "features.png")
    assert len(figure.axes) == 2 * fitted.model.m
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(bars, fitted.model.B[:, 0] * fitted.model.priors[0].variance() ** 0.5)
    with pytest.raises(InputError, match="the ending must be one of"):
        fitted.plot(tmp_path / "features.txt")
    with pytest.raises(InputError, match="cannot be written"):
        fitted.plot(tmp_path / "nowhere" / "features.png")


@pytest.mark.parametrize("name", ["starts", "iterations", "rounds"])
def test_counts_that_do_not_fit_are_refused(name: str) -> None:
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu")
    with pytest.raises(InputError, match=f"`{name}` is 0; it must be a whole number of at least 1"):
        et.fit(layer, et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4), **{name: 0})  # type: ignore[arg-type]


ONE = et.Encoder([et.Posterior("bernoulli", [[2.0]], [0.1])])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"noise_floor": 0.0}, "`noise_floor` is 0.0; it must be greater than 0"),
        ({"noise_floor": -1.0}, "`noise_floor` is -1.0; it must be greater than 0"),
        ({"noise_floor": float("nan")}, "`noise_floor` is nan; it must be a finite number"),
        ({"noise_floor": "small"}, "`noise_floor` is 'small'; it must be a number"),
        ({"family": 5}, "`family` is 5; it must be one word, or a list with one for each feature"),
        ({"prior": [1]}, r"`prior` is \[1\]; it must be one word, or a list"),
        ({"progress": 3}, "`progress` is 3; it must be a function of a `Step`"),
        ({"encoder": "propagated"}, "`encoder` is 'propagated'; it must be an elbotree.Encoder"),
        (
            {"encoder": et.Encoder([et.Posterior("bernoulli", [[1.0, 2.0]], [0.0])])},
            r"`encoder\[0\].C` has shape \(1, 2\)",
        ),
        ({"encoder": ONE, "features": 2}, "`features` is 2, and `encoder` has 1; leave one of the two out"),
        ({"encoder": ONE, "family": "normal"}, "`family` is normal, and `encoder` has bernoulli; leave `family` out"),
        ({"encoder": ONE, "prior": "binned"}, "`prior` is binned; of an `encoder` that is given"),
    ],
)
def test_arguments_that_do_not_fit_or_contradict_each_other_are_refused(more: dict[str, Any], message: str) -> None:
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu")
    with pytest.raises(InputError, match=message):
        et.fit(layer, et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4), **more)


def test_an_input_model_of_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match=r"`p1` is of x1 in R\^2; the layer takes n1 = 1 coordinates"):
        et.fit(et.Layer([[1.0]], [0.5], [0.8], "relu"), et.FeatureModel(np.eye(2), [et.Bernoulli(0.3)] * 2, 0.4))


def test_an_encoder_may_be_a_list_and_say_its_families_again() -> None:
    layer, p1 = et.Layer([[1.0]], [0.5], [0.8], "relu"), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    given = et.fit(layer, p1, encoder=list(ONE), features=1, family=["bernoulli"], tol=1e-2)  # type: ignore[arg-type]
    assert given.values["L"].value == et.fit(layer, p1, encoder=ONE, tol=1e-2).values["L"].value


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


def test_progress_tells_the_loss_its_rate_and_the_time_left() -> None:
    history: list[Step] = []
    texts = [
        step_text(Step(k + 1, 2.0 + 0.5**k, 0.0, 0.1, 0.3, tol, 3.0 * k, 3.0, {}, 0, leg), history, 1e-4)
        for leg, tol in ((0, 1e-3), (1, 1e-4))
        for k in range(8)
    ]
    assert "L = 2.500000 (-5.0e-01), tolerance 1e-03, 3 s an iteration, 3 s so far" in texts[1]
    assert " left" not in texts[1]
    assert "s left at this tolerance" in texts[7]
    assert "(+0.0e+00)" in texts[8]  # another leg is not compared with the one before
    assert texts[15].endswith("s left")


def layers_with_a_bound() -> list[tuple[et.Layer, et.FeatureModel]]:
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    return [
        (et.Layer([[1.0]], [0.5], [0.8], "relu"), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.2)),
        (
            et.Layer(turn, [0.3, 0.1], [0.5, 0.4], "tanh"),
            et.FeatureModel([[1.0, 0.5], [0.0, 0.9]], [et.Bernoulli(0.3)] * 2, 0.3),
        ),
        (
            et.Layer(np.eye(3), np.zeros(3), np.zeros(3), "zero"),
            et.FeatureModel(np.eye(3), [et.Bernoulli(0.2)] * 3, 0.15),
        ),
    ]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_each_fit_says_what_its_loss_may_not_fall_below(case: int, tmp_path: Path) -> None:
    layer, p1 = layers_with_a_bound()[case]
    fitted = et.fit(layer, p1, layer.n2, "bernoulli", tol=1e-4, starts=1)
    loss, bound = fitted.values["L"], fitted.bound
    assert bound is not None
    assert bound.entropy is not None
    assert (bound.cross_entropy is None) == (layer.n2 > 2)
    assert bound.entropy - 1e-6 <= (bound.entropy if bound.cross_entropy is None else bound.cross_entropy)
    assert bound.broken_by(loss.value, loss.error) == ""
    assert "lies below" not in fitted.message
    fitted.save(tmp_path)
    assert et.load(tmp_path).bound == bound  # type: ignore[union-attr]


def test_a_fit_whose_loss_dips_below_the_bound_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Orthonormal features reach their entropy, so that a hundredth of a nat taken off the loss is seen."""
    import elbotree.fitting as fitting
    from elbotree.runtime.estimates import Estimate

    layer, p1 = layers_with_a_bound()[2]
    whole = fitting.train

    def lower(*arguments: Any, **named: Any) -> Any:
        found = whole(*arguments, **named)
        loss = found.terms["L"]
        return replace(found, terms={**found.terms, "L": Estimate(loss.value - 0.01, loss.error)})

    monkeypatch.setattr(fitting, "train", lower)
    assert "lies below the entropy of f(x1)" in et.fit(layer, p1, 3, "bernoulli", tol=1e-3, starts=1).message
    problem = {
        "format": "elbotree-problem/1",
        "layer": {"A": [[1, 0], [0, 1]], "w": [0, 0], "u": [0, 0], "psi": "zero"},
        "input": {"B": [[1, 0], [0, 1]], "noise_std": 0.15, "priors": [{"kind": "bernoulli", "p": 0.2}] * 2},
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    call = ["fit", str(tmp_path / "p.json"), "--tol", "1e-3", "--starts", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 3
    assert "lies below" in done.output
    assert (tmp_path / "out" / "cfg.json").exists()  # saved all the same
    monkeypatch.setattr(fitting, "train", whole)
    done = CliRunner().invoke(main, [*call[:-1], str(tmp_path / "again")])
    assert done.exit_code == 0
    assert "bound: L >= cross-entropy " in done.output


def test_a_fit_whose_terms_miss_the_tolerance_is_saved_and_exits_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import elbotree.fitting as fitting
    from elbotree.runtime.estimates import Estimate

    whole = fitting.train

    def unsure(*arguments: Any, **named: Any) -> Any:
        found = whole(*arguments, **named)
        return replace(found, terms={**found.terms, "T2": Estimate(found.terms["T2"].value, 0.5)})

    monkeypatch.setattr(fitting, "train", unsure)
    problem = {
        "format": "elbotree-problem/1",
        "layer": {"A": [[1]], "w": [0], "u": [0], "psi": "zero"},
        "input": {"B": [[1]], "noise_std": 0.2, "priors": [{"kind": "bernoulli", "p": 0.2}]},
    }
    (tmp_path / "p.json").write_text(json.dumps(problem))
    call = ["fit", str(tmp_path / "p.json"), "--tol", "1e-2", "--starts", "1", "--format", "json", "--out"]
    done = CliRunner().invoke(main, [*call, str(tmp_path / "out")])
    assert done.exit_code == 3
    assert re.search(r"error: T2 = \S+ has error 5\.0e-01, above", done.stderr)
    assert json.loads(done.stdout)["terms"]["T2"]["error"] == 0.5  # told and saved all the same
    assert et.load(tmp_path / "out").values["T2"].error == 0.5
