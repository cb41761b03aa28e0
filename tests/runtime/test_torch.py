"""The loss for other optimisers: coordinates against differences, torch's own gradient check, and a run of each."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import elbotree as et
from elbotree.objectives import flat_objective, profile_objective, torch_module
from elbotree.runtime.errors import InputError, UnsupportedError


def problem(prior: et.Prior | None = None) -> et.Problem:
    """One coordinate, two features: an evaluation takes a hundredth of a second."""
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Discrete((-1.0, 0.0, 2.0), (0.2, 0.5, 0.3))], 0.4)
    tilted = et.Posterior("tilted", [[1.2]], [-0.3], precision=0.8, base=et.Bernoulli(0.4))
    normal = et.Posterior("normal", [[0.4]], [0.1], std=0.6)
    model = et.FeatureModel([[1.1, 0.5]], [prior or et.Bernoulli(0.3), et.Normal(0.1, 0.9)], 0.5, [0.2])
    return et.Problem(layer, p1, model, et.Encoder([tilted, normal]))


def test_the_flat_gradient_equals_differences_in_every_coordinate() -> None:
    made = flat_objective(problem(), 1e-8, "all")
    assert made.names[:3] == ["C_0[0][0]", "bias_0[0]", "log_precision_0"]
    assert made.names[-3:] == ["prior_0_logit_p", "prior_1_mean", "prior_1_log_std"]
    gradient = made.jac(made.x0)
    assert len(gradient) == len(made.names) == 13
    for i, name in enumerate(made.names):
        step = np.zeros(13)
        step[i] = 1e-4
        difference = (made.fun(made.x0 + step) - made.fun(made.x0 - step)) / 2e-4
        assert gradient[i] == pytest.approx(difference, abs=1e-6), name


@pytest.mark.parametrize(
    "prior",
    [
        et.Discrete((0.0, 1.0, 2.0), (0.3, 0.5, 0.2)),
        et.SpikeSlab(0.4, et.Normal(0.2, 0.7)),
        et.Mixture((0.3, 0.7), (et.Normal(0.0, 0.5), et.Laplace(0.3, 0.8))),
        et.Gamma(2.0, 0.5),
    ],
)
def test_priors_as_free_numbers_come_back_and_stay_in_their_range(prior: et.Prior) -> None:
    base = problem()
    q = et.Posterior("tilted", [[1.2]], [-0.3], precision=0.8, base=prior)
    made = et.Problem(base.layer, base.input, et.FeatureModel([[1.0]], [prior], 0.5), et.Encoder([q]))
    objective = flat_objective(made, what="priors")
    back = objective.problem(objective.x0).model.priors[0].parameters()
    for name, value in prior.parameters().items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)
    assert len(objective.x0) == sum(np.size(value) for value in prior.parameters().values())
    moved = objective.problem(objective.x0 + np.linspace(-3, 3, len(objective.x0))).model.priors[0]
    assert moved != prior


def test_the_gradient_in_logits_of_masses_equals_differences() -> None:
    made = flat_objective(problem(et.Discrete((0.0, 1.0, 2.0), (0.3, 0.5, 0.2))), 1e-8, "priors")
    gradient = made.jac(made.x0)
    for i in range(3):
        step = np.zeros(len(made.x0))
        step[i] = 1e-4
        difference = (made.fun(made.x0 + step) - made.fun(made.x0 - step)) / 2e-4
        assert gradient[i] == pytest.approx(difference, abs=1e-6)
    assert gradient[:3].sum() == pytest.approx(0.0, abs=1e-10)  # a common shift of logits changes nothing


def test_scipy_lowers_both_objectives_and_the_profile_more() -> None:
    start = problem()
    flat = flat_objective(start, 1e-4, "all")
    profile = profile_objective(start.layer, start.input, start.encoder, 1e-4)
    options = {"maxiter": 3}
    found = minimize(flat.fun_and_jac, flat.x0, jac=True, method="L-BFGS-B", options=options)
    assert found.fun < flat.fun(flat.x0) - 0.01
    assert profile.fun(profile.x0) < flat.fun(flat.x0)  # the best decoder of the same encoder
    after = minimize(profile.fun_and_jac, profile.x0, jac=True, method="L-BFGS-B", options=options)
    assert after.fun <= profile.fun(profile.x0)
    end = profile.problem(after.x)
    assert et.evaluate(end, 1e-4)["L"].value == pytest.approx(after.fun, abs=1e-3)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="`what` names 'decoders'; its parts are encoder, decoder, priors"):
        flat_objective(problem(), what=["decoders"])
    with pytest.raises(InputError, match=r"`x` has shape \(2,\); it must be \(6,\)"):
        flat_objective(problem()).fun(np.zeros(2))
    start = problem()
    sharp = et.Encoder([et.Posterior("tilted", [[1.2]], precision=0.0, base=et.Bernoulli(0.4)), start.encoder[1]])
    with pytest.raises(InputError, match="log_precision_0 is -inf"):
        flat_objective(et.Problem(start.layer, start.input, start.model, sharp))

    for wrong in (0, -1.0, float("nan"), "small"):
        with pytest.raises(InputError, match="`tol` is"):
            flat_objective(start, tol=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match='`what` is None; it must be "all", or some of encoder, decoder, priors'):
        flat_objective(start, what=None)  # type: ignore[arg-type]


def test_a_profile_of_another_layer_or_at_another_vector_is_refused() -> None:
    start = problem()
    with pytest.raises(InputError, match=r"`encoder\[0\].C` has shape \(1, 2\)"):
        profile_objective(start.layer, start.input, et.Encoder([et.Posterior("bernoulli", [[1.0, 2.0]], [0.0])]))
    with pytest.raises(InputError, match="`encoder` is None"):
        profile_objective(start.layer, start.input, None)  # type: ignore[arg-type]
    profile = profile_objective(start.layer, start.input, start.encoder)
    for wrong in (profile.x0[:-1], np.append(profile.x0, 0.0), profile.x0[None]):
        with pytest.raises(InputError, match=r"`x` has shape .*; it must be \(5,\), as `x0` is"):
            profile.fun(wrong)
    flat = flat_objective(start)
    flat.fun(flat.x0)
    with pytest.raises(InputError, match=r"`x` has shape \(1, 6\)"):  # of the same bytes as the last one
        flat.fun(flat.x0[None])


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "elbotree.runtime.torch", raising=False)
    with pytest.raises(UnsupportedError, match=r"pip install 'elbotree\[torch\]'"):
        torch_module(problem())


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs the extra torch")


def test_torch_checks_the_gradient(torch: Any) -> None:
    module = torch_module(problem(), 1e-8, "all")
    parameters = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    assert torch.autograd.gradcheck(module.loss_of, parameters, eps=1e-4, atol=1e-6, rtol=1e-6)


def test_the_module_is_the_loss(torch: Any) -> None:
    module = torch_module(problem(), 1e-8)
    expected, gradient = et.evaluate(problem(), 1e-8), et.gradient(problem(), 1e-8)
    loss = module()
    assert (loss.dtype, loss.shape) == (torch.float64, ())
    assert loss.item() == pytest.approx(expected["L"].value, abs=1e-8)
    assert set(module.terms) == set(expected)
    (3 * loss).backward()  # the chain rule goes on above
    np.testing.assert_allclose(module.B.grad.numpy(), 3 * gradient["B"].value, atol=1e-7)
    np.testing.assert_allclose(module.C_1.grad.numpy(), 3 * gradient["C"][1].value, atol=1e-7)
    with torch.no_grad():
        assert not module().requires_grad


def test_adam_trains_it_and_its_state_is_kept(torch: Any) -> None:
    module = torch_module(problem(), 1e-4)
    assert sorted(module.state_dict()) == sorted(module.names)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = module()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert et.evaluate(module.problem(), 1e-4)["L"].value < losses[-1]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64"])
def test_tensors_are_arrays_with_their_gradient_and_whatever_their_type(torch: Any, dtype: str) -> None:
    numbers = [[1.0, 2.0], [0.0, -3.0]]
    A = torch.tensor(numbers, dtype=getattr(torch, dtype), requires_grad=dtype != "int64")
    layer = et.Layer(A, A[0], A[1], "relu", threshold=A[0, 0])
    assert layer.A.tolist() == numbers
    assert layer.w.tolist() == numbers[0]
    assert layer.threshold == 1.0
    assert layer(A)[0].tolist() == layer(numbers)[0].tolist()
    assert et.Normal(0.0, A[0, 1]).std == 2.0
    with pytest.raises(et.InputError, match=r"`layer\.A` has type complex128"):
        et.Layer(A.to(torch.complex128), A[0], A[1])
