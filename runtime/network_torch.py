"""Reading torch modules. Importing this file imports torch: only `networks` does so, once it holds a torch module, and
users who want `Residual` or `Elementwise` in their own networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.models import Layer
from elbotree.runtime.network_blocks import TransformerBlock
from elbotree.runtime.network_program import Affine, Program

Array = NDArray[np.float64]


class Residual(nn.Module):  # type: ignore[misc]
    """x + body(x). The body's output has the size of its input.

    >>> from torch import nn
    >>> Residual(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)))(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, *body: Any) -> None:
        super().__init__()
        self.body = body[0] if len(body) == 1 else nn.Sequential(*body)

    def forward(self, x: Any) -> Any:
        """x + body(x)."""
        return x + self.body(x)


class Elementwise(nn.Module):  # type: ignore[misc]
    """Any psi that elbotree knows, a name or an expression in b, as a torch module without gradient."""

    def __init__(self, psi: str) -> None:
        super().__init__()
        self.psi = psi
        self.activation = Layer(np.eye(1), np.ones(1), np.ones(1), psi).activation

    def forward(self, x: Any) -> Any:
        """psi of each entry, in float64."""
        return torch.from_numpy(np.asarray(self.activation(x.detach().cpu().double().numpy()))).to(x.dtype)


def _number(value: float) -> str:
    """A number as psi's grammar spells it, in parentheses for its sign."""
    return f"({float(value)!r})"


def _softplus(m: Any) -> str:
    return "softplus" if m.beta == 1 else f"softplus({_number(m.beta)}*b)/{_number(m.beta)}"


def _gelu(m: Any) -> str:
    root = "(2/pi)**(1/2)"
    return "gelu" if m.approximate == "none" else f"b*(1 + tanh({root}*(b + 0.044715*b**3)))/2"


def _prelu(m: Any) -> str | list[str]:
    slopes = _array(m.weight, "weight")
    names = [f"leaky_relu(b, {_number(slope)})" for slope in slopes]
    return names[0] if len(names) == 1 else names


_SELU = (1.0507009873554805, 1.6732632423543772)

#: Activation module -> psi, as text or from the module's own numbers; a list is one psi a coordinate.
_PSI: dict[Any, str | Callable[[Any], str | list[str]]] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: lambda m: f"leaky_relu(b, {_number(m.negative_slope)})",
    nn.PReLU: _prelu,
    nn.ELU: lambda m: f"elu(b, {_number(m.alpha)})",
    nn.CELU: lambda m: f"{_number(m.alpha)}*elu(b/{_number(m.alpha)})",
    nn.SELU: f"{_SELU[0]!r}*elu(b, {_SELU[1]!r})",
    nn.Softplus: _softplus,
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "-softplus(-b)",
    nn.Tanh: "tanh",
    nn.Tanhshrink: "b - tanh(b)",
    nn.GELU: _gelu,
    nn.SiLU: "silu",
    nn.Mish: "b*tanh(softplus(b))",
    nn.Hardtanh: lambda m: f"hardtanh(b, {_number(m.min_val)}, {_number(m.max_val)})",
    nn.ReLU6: "hardtanh(b, 0, 6)",
    nn.Hardsigmoid: "hardtanh(b/6 + 1/2, 0, 1)",
    nn.Hardswish: "b*hardtanh(b/6 + 1/2, 0, 1)",
    nn.Softsign: "b/(1 + abs(b))",
    nn.Hardshrink: lambda m: f"where(abs(b) > {_number(m.lambd)}, b, 0)",
    nn.Softshrink: lambda m: f"relu(b - {_number(m.lambd)}) - relu(-b - {_number(m.lambd)})",
    nn.Threshold: lambda m: f"where(b > {_number(m.threshold)}, b, {_number(m.value)})",
    Elementwise: lambda m: str(m.psi),
}


def _psi_of(module: Any) -> str | list[str]:
    """psi of an activation module, or one each for its coordinates."""
    rule = _PSI[type(module)]
    return rule if isinstance(rule, str) else rule(module)


_PASSED = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)
_OTHER = (nn.Sequential, Residual, nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.Flatten, nn.Softmax, nn.LogSoftmax)


def read_torch(model: Any) -> tuple[Program, Affine]:
    """The program of a torch module in evaluation mode, and its outputs.

    Raises UnsupportedError that lists all modules that cannot be read, InputError for sizes that do not fit.
    """
    problems = _problems(model, "model")
    if problems:
        raise UnsupportedError(
            f"{len(problems)} part(s) of the network cannot be compiled: {'; '.join(problems)}. help(elbotree.compile_network) "
            "lists what is read; a module of your own may be given as a Sequential or a list of (W, bias, psi), or as ONNX"
        )
    program = Program(_inputs(model))
    return program, _walk(program, program.input(), model, "model")


def _problems(module: Any, place: str) -> list[str]:
    """Everything about a module and what it holds that cannot be read."""
    kind = type(module)
    if kind in (nn.Sequential, Residual):
        return [line for name, child in module.named_children() for line in _problems(child, f"{place}.{name}")]
    if isinstance(module, _PASSED):
        return [f"{place} ({kind.__name__}) is in training mode: call model.eval()"] if _random(module) else []
    if kind is nn.BatchNorm1d and (module.training or module.running_mean is None):
        why = "has no running statistics" if module.running_mean is None else "is in training mode: call model.eval()"
        return [f"{place} (BatchNorm1d) {why}"]
    if kind is nn.Flatten and (module.start_dim != 1 or module.end_dim != -1):
        return [f"{place} (Flatten) keeps some dimensions: only start_dim=1, end_dim=-1 is read"]
    if kind in (nn.Softmax, nn.LogSoftmax) and module.dim not in (1, -1):
        return [f"{place} ({kind.__name__}) goes along dim={module.dim}: only dim=1 or -1 is read"]
    if kind in _PSI or kind in _OTHER:
        return []
    return [f"{place} ({kind.__name__}) has no such form here"]


def _random(module: Any) -> bool:
    return bool(module.training and getattr(module, "p", 0) > 0)


def _inputs(module: Any) -> int:
    """The number of inputs: that of the first part that says so."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            return int(part.in_features)
        if isinstance(part, nn.BatchNorm1d):
            return int(part.num_features)
        if isinstance(part, nn.LayerNorm):
            return int(np.prod(part.normalized_shape))
    raise InputError(
        "no part of the network says how many inputs there are; it needs a Linear, BatchNorm1d or LayerNorm"
    )


def _walk(program: Program, x: Affine, module: Any, place: str) -> Affine:
    """The module's outputs for inputs x; `_problems` saw to it that every kind below occurs."""
    kind = type(module)
    if kind is nn.Sequential:
        for name, child in module.named_children():
            x = _walk(program, x, child, f"{place}.{name}")
        return x
    if kind is Residual:
        inner = _walk(program, x, module.body, f"{place}.body")
        _expect(len(inner), len(x), place, "Residual", "its body must give as many numbers as it takes")
        return x + inner
    if kind is nn.Linear:
        _expect(len(x), module.in_features, place, "Linear", "in_features must be what comes before")
        bias = 0.0 if module.bias is None else _array(module.bias, f"{place}.bias")
        return x.mapped(_array(module.weight, f"{place}.weight"), bias)
    if kind is nn.BatchNorm1d:
        return _batch_norm(x, module, place)
    if kind is nn.LayerNorm:
        _expect(len(x), int(np.prod(module.normalized_shape)), place, "LayerNorm", "mend normalized_shape")
        return program.layer_norm(x, *_norm(module, place), place)
    if kind is nn.Softmax:
        return program.softmax(x, place)
    if kind is nn.LogSoftmax:
        total = program.log_sum_exp(x, place)
        return x - total[[0] * len(x)]
    if kind is nn.Flatten or isinstance(module, _PASSED):
        return x
    psi = _psi_of(module)
    name = f"{place} {kind.__name__}"
    if isinstance(psi, str):
        return program.apply(psi, x, name)
    _expect(len(x), len(psi), place, kind.__name__, "one slope a coordinate")
    return Affine.stacked([program.apply(p, x[i : i + 1], f"{name}[{i}]") for i, p in enumerate(psi)])


def _batch_norm(x: Affine, module: Any, place: str) -> Affine:
    """gain (x - running mean) / sqrt(running var + eps) + bias."""
    _expect(len(x), module.num_features, place, "BatchNorm1d", "num_features must be what comes before")
    mean, var = (_array(getattr(module, f"running_{name}"), f"{place}.running_{name}") for name in ("mean", "var"))
    factor: Array = 1 / np.sqrt(var + float(module.eps))
    shift: Array = -mean * factor
    if module.affine:
        gain, bias = _array(module.weight, f"{place}.weight"), _array(module.bias, f"{place}.bias")
        factor, shift = factor * gain, shift * gain + bias
    return x.scaled(factor) + shift


def _norm(module: Any, place: str) -> tuple[Array, Array, float]:
    """(gain, bias, eps) of a LayerNorm."""
    d = int(np.prod(module.normalized_shape))
    gain = np.ones(d) if module.weight is None else _array(module.weight, f"{place}.weight").ravel()
    bias = np.zeros(d) if module.bias is None else _array(module.bias, f"{place}.bias").ravel()
    return gain, bias, float(module.eps)


def _array(tensor: Any, place: str) -> Array:
    array = np.asarray(tensor.detach().cpu().double().numpy())
    if not np.isfinite(array).all():
        raise InputError(f"{place} holds a number that is not finite; every weight must be")
    return array


def _expect(got: int, wanted: int, place: str, kind: str, fix: str) -> None:
    if got != wanted:
        raise InputError(f"{place} ({kind}) meets {got} numbers where {wanted} were expected; {fix}")


# -- transformer blocks -----------------------------------------------------------------------------------------------
def transformer_block(layer: Any, tokens: int, *, causal: bool = False, softmax: str = "softplus") -> TransformerBlock:
    """A `torch.nn.TransformerEncoderLayer` in evaluation mode, for a fixed number of tokens, as a `TransformerBlock`.

    The compiled network takes the tokens of one sequence as one row, token after token.
    Raises UnsupportedError for an activation that is neither relu, gelu nor an activation module, and in training mode.
    """
    if type(layer) is not nn.TransformerEncoderLayer:
        raise UnsupportedError(f"`layer` is a {type(layer).__name__}; it must be a torch.nn.TransformerEncoderLayer")
    if layer.training and (layer.dropout.p or layer.dropout1.p or layer.dropout2.p or layer.self_attn.dropout):
        raise UnsupportedError("the layer is in training mode, where dropout is random: call layer.eval()")
    attention, d = layer.self_attn, layer.self_attn.embed_dim
    weights = np.split(_array(attention.in_proj_weight, "in_proj_weight"), 3)
    packed = attention.in_proj_bias
    biases = np.split(np.zeros(3 * d) if packed is None else _array(packed, "in_proj_bias"), 3)
    norms = [_norm(norm, f"norm{i + 1}") for i, norm in enumerate((layer.norm1, layer.norm2))]
    return TransformerBlock(
        tokens,
        (weights[0], biases[0]),
        (weights[1], biases[1]),
        (weights[2], biases[2]),
        _pair(attention.out_proj, "out_proj"),
        _pair(layer.linear1, "linear1"),
        _pair(layer.linear2, "linear2"),
        _block_psi(layer.activation),
        heads=attention.num_heads,
        norms=norms,
        pre_norm=bool(layer.norm_first),
        causal=causal,
        softmax=softmax,
    )


def _pair(linear: Any, place: str) -> tuple[Array, Array | None]:
    return _array(linear.weight, place), None if linear.bias is None else _array(linear.bias, place)


def _block_psi(activation: Any) -> str:
    """psi of the MLP, from the function or the module that torch holds."""
    if activation is nn.functional.relu:
        return "relu"
    if activation is nn.functional.gelu:
        return "gelu"
    psi = _psi_of(activation) if type(activation) in _PSI else None
    if not isinstance(psi, str):
        raise UnsupportedError(f"the layer's activation {activation!r} is neither relu, gelu nor an activation module")
    return psi
