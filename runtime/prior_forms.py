"""Priors from what users write: the JSON form of each kind, read strictly, and frozen scipy.stats distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from elbotree.runtime.arguments import shortened
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.prior_base import Prior, nearest
from elbotree.runtime.priors import PRIORS, Bernoulli, Discrete, Exponential, Gamma, Laplace, Normal, Uniform

_KEYS: dict[str, dict[str, bool]] = {  # the JSON keys of each kind, and whether each is required
    "discrete": {"points": True, "masses": True},
    "bernoulli": {"p": True},
    "normal": {"mean": False, "std": False},
    "exponential": {"scale": False},
    "gamma": {"shape": True, "scale": False},
    "uniform": {"low": False, "high": False},
    "laplace": {"mean": False, "scale": False},
    "spike_slab": {"p": True, "slab": True},
    "mixture": {"weights": True, "components": True},
}


def from_spec(spec: object, where: str, depth: int = 0) -> Prior:
    if isinstance(spec, Prior):
        return spec
    if not isinstance(spec, Mapping):
        raise InputError(f'{where} is {spec!r}; it must be an object such as {{"kind": "bernoulli", "p": 0.3}}')
    if depth > 32:
        raise InputError(f"{where}: mixtures nest more than 32 deep; flatten them")
    kind = spec.get("kind")
    if kind is None:
        raise InputError(f"{where} has no `kind`; known: {', '.join(sorted(PRIORS))}")
    if not isinstance(kind, str) or kind not in PRIORS:
        raise InputError(f"{where}.kind is {shortened(kind)}, which is no prior{nearest(kind, PRIORS)}")
    keys = _KEYS[kind]
    for key in spec:
        if key != "kind" and key not in keys:
            raise InputError(f"{where}: a {kind} prior has no key {shortened(key)}{nearest(key, keys)}")
    for key, required in keys.items():
        if required and key not in spec:
            raise InputError(f"{where}: a {kind} prior needs the key {key!r}")
    values = {key: spec[key] for key in keys if key in spec}
    if "slab" in values:
        values["slab"] = from_spec(values["slab"], f"{where}.slab", depth + 1)
    if "components" in values:
        if not isinstance(values["components"], list | tuple):
            raise InputError(f"{where}.components is {values['components']!r}; it must be a list of priors")
        parts = enumerate(values["components"])
        values["components"] = [from_spec(part, f"{where}.components[{i}]", depth + 1) for i, part in parts]
    try:
        return PRIORS[kind](**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def from_scipy(obj: object, where: str) -> Prior:
    """A frozen scipy.stats distribution as a prior, or an error that says why it is none."""
    if hasattr(obj, "xk") and hasattr(obj, "pk"):
        return Discrete(obj.xk, obj.pk)
    law = getattr(obj, "dist", None)
    if law is None or not hasattr(law, "_parse_args"):
        raise InputError(
            f"{where} is {obj!r}; it must be an elbotree prior, its JSON form, or a frozen scipy.stats distribution "
            "such as scipy.stats.norm(0, 1)"
        )
    shapes, loc, scale = law._parse_args(*obj.args, **obj.kwds)  # type: ignore[attr-defined]
    loc, scale = float(loc), float(scale)
    if law.name in ("expon", "gamma") and loc != 0:
        raise UnsupportedError(
            f"{where}: scipy's {law.name} has loc = {loc:g}; priors of this kind start at 0, so move the shift into "
            "the feature model's `offset` (offset += B[:, j] * loc)"
        )
    makers: dict[str, Callable[[], Prior]] = {
        "norm": lambda: Normal(loc, scale),
        "expon": lambda: Exponential(scale),
        "gamma": lambda: Gamma(float(shapes[0]), scale),
        "uniform": lambda: Uniform(loc, loc + scale),
        "laplace": lambda: Laplace(loc, scale),
        "bernoulli": lambda: _shifted_bernoulli(float(shapes[0]), loc),
    }
    if law.name not in makers:
        raise UnsupportedError(
            f"{where}: scipy's {law.name!r} has no counterpart here; known: {', '.join(sorted(makers))}, "
            "rv_discrete(values=...); or bin it into an elbotree Discrete prior"
        )
    return makers[law.name]()


def _shifted_bernoulli(p: float, loc: float) -> Prior:
    return Bernoulli(p) if loc == 0 else Discrete((loc, loc + 1), (1 - p, p))
