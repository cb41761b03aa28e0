"""Feature models for whole networks, and keeping them: the front of `runtime.chain`, with the folder format of a chain
(cfg.json and model.safetensors). How a model goes through a layer, and how drift is measured, is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import elbotree.compiler  # noqa: F401  (layers hold psi as text)
from elbotree.codegen import generate
from elbotree.fitting import Fit
from elbotree.fitting import load as load_fit
from elbotree.runtime import chain as chains
from elbotree.runtime.activations import Activation
from elbotree.runtime.arguments import MOST_SAMPLES, check_count, finite_number, read_only_array, real_array
from elbotree.runtime.chain_checkpoints import read_loss
from elbotree.runtime.drift import Drift
from elbotree.runtime.errors import InputError
from elbotree.runtime.importance import SampledTail, sampled_tail
from elbotree.runtime.models import FeatureModel, Layer, Problem
from elbotree.runtime.problem_json import FORMAT as PROBLEM_FORMAT
from elbotree.runtime.records import read_record
from elbotree.runtime.storage import CFG, ArrayFiles, load_folder, read_json, save_folder

FORMAT = "elbotree-chain/2"


@dataclass(frozen=True, eq=False, repr=False)
class Chain(chains.Chain):
    """A feature model for every layer of a network, made by `fit_network`. Print it for a table.

    layers   the network
    p1       the model of its input
    models   one a layer, of that layer's output
    losses   one a layer: L where the layer's model was trained, else None
    drift    one a layer: against samples of the network, None where no samples were asked for
    method   how the models were made
    notes    what was given up on the way
    seconds  what it took
    """

    def save(self, folder: str | Path) -> None:
        """Write cfg.json and model.safetensors into a folder, atomically. `elbotree.load` reads them back."""
        arrays: dict[str, Any] = {}
        for i, layer in enumerate(self.layers):
            for name in ("A", "w", "u", "offset"):
                arrays[f"layers[{i}].{name}"] = getattr(layer, name)
        models = {"p1": self.p1, **{f"models[{i}]": model for i, model in enumerate(self.models)}}
        for place, model in models.items():
            arrays[f"{place}.B"], arrays[f"{place}.offset"] = model.B, model.offset
        cfg = {
            "format": FORMAT,
            "method": self.method,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "layers": [{"psi": _text(layer), "threshold": layer.threshold} for layer in self.layers],
            "p1": _model_form(self.p1),
            "models": [_model_form(model) for model in self.models],
            "losses": [None if loss is None else asdict(loss) for loss in self.losses],
            "drift": [None if drift is None else asdict(drift) for drift in self.drift],
        }
        save_folder(folder, cfg, arrays)

    def to_dict(self) -> dict[str, Any]:
        """What the table shows, as JSON data (without the models)."""
        rows = [
            {
                "psi": _text(layer) if layer.w.any() else None,
                "width": layer.n2,
                "features": model.m,
                "loss": None if loss is None else loss.to_dict(),
                "drift": None if drift is None else drift.to_dict(),
            }
            for layer, model, loss, drift in zip(self.layers, self.models, self.losses, self.drift, strict=True)
        ]
        return {"method": self.method, "trusted": self.trusted, "layers": rows, "notes": list(self.notes)}


def fit_network(
    layers: Sequence[Layer],
    p1: FeatureModel,
    *,
    method: str = "fit",
    tol: float = 1e-3,
    features: int | None = 24,
    iterations: int = 0,
    noise_floor: float = 0.02,
    samples: int = 100_000,
    check_samples: int | None = None,
    seed: int = 0,
    progress: Callable[[int, FeatureModel], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
) -> Chain:
    """A feature model for every layer of a network, each made from the model before it.

    With f(x) = y + w psi(b), every step regresses psi(b) on the features of y and on the rests of the units before it that
    read the same features: features keep their priors and take the slope times w into their columns, and one feature along
    w stands for the rest. So the units of a hidden layer get the exact mean and covariance of the network under the model
    before that layer (for the first one: under p1), and affine layers are exact. What is lost is dependence beyond
    correlation, which the next hidden layer no longer sees: `check_samples` measures what that amounts to.

    Arguments
        layers         the network, from `compile_network` or by hand
        p1             the model of the input
        method         "fit" as above; "mean-prop": the mean alone; "cov-prop": Gaussian moments of each step;
                       "sampling": the normal law of the mean and the covariance of samples
        tol            of the training's terms; expectations in closed-form steps are at least a thousand times finer
        features       how many features that are not normal a model may have; those that matter least are made normal,
                       which keeps the covariance. None: no bound. A trained model has at most so many in all
        iterations     of the optimiser for each layer's model (the loss L); 0: the closed form above and no training.
                       Training takes minutes a layer from a dozen features on, and its decoder minimises L instead of
                       keeping the covariance
        noise_floor    the least Gaussian noise of b, in its standard deviations; where there is less, it is added
        samples        rows of method "sampling"
        check_samples  rows of p1 sent through the true network, which each model is compared with; None: no check
        seed           of everything drawn
        progress       called with the number of each layer that is done, and its model
        checkpoint     folder to keep the finished layers in, and the training under way; each is written atomically
        resume         go on from there, to the same bytes as without the interruption (same machine and versions); start anew
                       where there is nothing yet. The arguments must be the ones it was begun with
        executor       any `concurrent.futures` executor, for the sums over pairs of features of the training, as in
                       `evaluate`; it may be another one after an interruption

    Returns a `Chain`; print it for the drift. Raises InputError for arguments that do not fit together, and
    UnsupportedError where a psi has a pole inside the law of its b.
    The paper: section 4 (a network as a chain of layers).

    >>> import numpy as np, elbotree as et
    >>> layer = et.Layer(np.eye(2), [0.0, 1.0], [1.0, 0.0], "square")
    >>> chain = et.fit_network([layer], et.FeatureModel(np.zeros((2, 0)), [], 1.0))
    >>> chain.models[0].mean().round(6).tolist(), chain.models[0].covariance().round(6).tolist()
    ([0.0, 1.0], [[1.0, 0.0], [0.0, 3.0]])
    """
    made = chains.build_chain(
        layers,
        p1,
        _kernels,
        method=method,
        tol=tol,
        features=features,
        iterations=iterations,
        noise_floor=noise_floor,
        samples=samples,
        check_samples=check_samples,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        executor=executor,
    )
    return Chain(**{field.name: getattr(made, field.name) for field in fields(made)})


def read_input(path: str | Path) -> FeatureModel:
    """The feature model under the key `input` of a JSON file: a problem's file, or one with nothing else in it. Raises
    InputError that names the file and the place."""
    data = read_json(path)
    form = data.get("input") if isinstance(data, dict) else None
    if not isinstance(form, dict):
        raise InputError(f"{path}: it must be an object with the key `input`, a feature model as in a problem's file")
    folder, B = Path(path).parent, form.get("B")
    rows = ArrayFiles(folder).array(B, "`input.B`") if isinstance(B, dict) else B
    n = len(rows) if isinstance(rows, list | np.ndarray) and len(rows) else 1
    # an identity layer and an empty model keep the strict reader's checks of everything that is there
    layer = {"A": np.eye(n), "w": np.zeros(n), "u": np.zeros(n), "psi": "identity"}
    empty = {"B": np.zeros((n, 0)), "noise_std": 1.0, "priors": []}
    whole = {"format": PROBLEM_FORMAT, "layer": layer, "input": form, "model": empty, "encoder": []}
    try:
        return Problem.from_dict(whole, folder).input
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None


def sampled_tails(
    layers: Sequence[Layer],
    p1: FeatureModel,
    v: ArrayLike,
    x: ArrayLike,
    samples: int,
    *,
    seed: int = 0,
) -> tuple[SampledTail, ...]:
    """P(<v, F(x1)> > x), x1 ~ p1, of the network F that the layers make, by importance sampling: one estimate a threshold.

    The proposal is an exponential tilt of the input law, found by cross-entropy, mixed with that law itself, so that the
    estimates are unbiased at any depth; each has a standard error and an effective sample size.

    Arguments
        layers   the network; none: the input law itself
        v        (n,), the read-out of the last layer
        x        thresholds, a number or an array
        samples  rows an estimate
        seed     of the rows

    Returns a tuple of `SampledTail`: `.value`, `.std_error`, `.log_value`, `.relative_std_error`, `.effective_samples`.
    Raises InputError for shapes that do not fit.

    >>> import numpy as np, elbotree as et
    >>> one, = et.sampled_tails([], et.FeatureModel(np.zeros((1, 0)), [], 1.0), [1.0], 6.0, 20_000)
    >>> abs(one.value / 9.865876e-10 - 1) < 5 * one.relative_std_error < 0.1
    True
    """
    chains.check_layers(layers, p1)
    n = layers[-1].n2 if layers else p1.n
    row = read_only_array(v, "v", 1)
    if row.shape != (n,):
        raise InputError(f"`v` has shape {row.shape}; the last layer has {n} outputs, so it must be ({n},)")
    check_count("samples", samples, 100, MOST_SAMPLES)
    points = real_array(x, "x").ravel().tolist()
    return tuple(sampled_tail(layers, p1, row, point, samples, seed) for point in points)


def _kernels(psi: str, families: Sequence[str]) -> chains.ChainKernels:
    return generate(psi, list(families))


def load(folder: str | Path) -> Fit | Chain:
    """Returns the `Fit` or the `Chain` that its `save` wrote into a `folder`. Raises InputError that names the file and what is
    wrong with it."""
    cfg, _ = load_folder(folder)
    return load_chain(folder) if cfg.get("format") == FORMAT else load_fit(folder)


def load_chain(folder: str | Path) -> Chain:
    """Read a chain that `Chain.save` wrote. Raises InputError that names the file and what is wrong with it."""
    cfg, arrays = load_folder(folder)
    place = Path(folder) / CFG
    if cfg.get("format") != FORMAT:
        raise InputError(f"{place}: `format` is {cfg.get('format')!r}; this version reads {FORMAT!r}")
    try:
        layers = tuple(_read_layer(form, f"layers[{i}]", arrays) for i, form in enumerate(cfg["layers"]))
        models = tuple(_read_model(form, f"models[{i}]", arrays) for i, form in enumerate(cfg["models"]))
        losses = tuple(
            None if form is None else read_loss(form, f"losses[{i}]") for i, form in enumerate(cfg["losses"])
        )
        drift = tuple(
            None if form is None else read_record(Drift, form, f"drift[{i}]") for i, form in enumerate(cfg["drift"])
        )
        if not layers or not len(layers) == len(models) == len(losses) == len(drift):
            raise InputError("`layers`, `models`, `losses` and `drift` must have one entry a layer")
        p1 = _read_model(cfg["p1"], "p1", arrays)
        notes = tuple(str(note) for note in cfg["notes"])
        return Chain(
            layers, p1, models, losses, drift, str(cfg["method"]), notes, finite_number(cfg["seconds"], "seconds")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place} is not the {CFG} of a chain: {type(error).__name__} at {error}; save it again"
        ) from None
    except InputError as error:
        raise type(error)(f"{place}: {error}") from None


def _text(layer: Layer) -> str:
    return layer.psi.text if isinstance(layer.psi, Activation) else layer.psi


def _model_form(model: FeatureModel) -> dict[str, Any]:
    return {"noise_std": model.noise_std, "priors": [prior.spec() for prior in model.priors]}


def _read_model(form: dict[str, Any], place: str, arrays: dict[str, Any]) -> FeatureModel:
    return FeatureModel(arrays[f"{place}.B"], form["priors"], form["noise_std"], arrays[f"{place}.offset"])


def _read_layer(form: dict[str, Any], place: str, arrays: dict[str, Any]) -> Layer:
    A, w, u, offset = (arrays[f"{place}.{name}"] for name in ("A", "w", "u", "offset"))
    return Layer(A, w, u, form["psi"], offset, form["threshold"])
