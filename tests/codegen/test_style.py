"""Printed statements keep their meaning and have the formatter's form."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elbotree.codegen import check, generate, style
from elbotree.derivation.activations import activation_names
from elbotree.runtime.errors import InputError

ROOT = Path(__file__).parents[2]
RUFF = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
ruff_is_here = pytest.mark.skipif(not Path(RUFF).exists(), reason="ruff is not installed")

FAMILIES = ("bernoulli", "normal", "normal_scale", "exponential", "tilted")
TEXTS = (
    "max(0, b) - 0.1*b**2",
    "where(b < 0, sin(b)*exp(-b**2/3) + 2*cos(3*b)/(1+b**2) - erf(b), where(b<1, b**3 - 2*b**2 + b*sqrt(b+4), "
    "log(1+b)*7.25 + 11.125*b - 3.0078125))",
    "exp(-b**2)*(b**4 - 6*b**2 + 3)/(1 + exp(-b)) + sigmoid(3*b - 1)*sin(b)**2*cos(b)**3*tanh(b/3)/(2+cos(b))",
    "min(max(b,-1),max(2*b-3,b/2, 0.25*b + 1), 4)",
    "+".join(f"tanh({n}*b)*cos(b/{n})**{n}" for n in range(2, 14)),
)


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("a*b+c", "a * b + c"),
        ("(a+b)*c", "(a + b) * c"),
        ("((a*b))/c", "a * b / c"),
        ("a/(b*c)", "a / (b * c)"),
        ("a-(b-c)", "a - (b - c)"),
        ("x**2", "x**2"),
        ("x.y**-2", "x.y**-2"),
        ("f(x)**2", "f(x) ** 2"),
        ("(x+1)**0.5", "(x + 1) ** 0.5"),
        ("-x**2*y", "-(x**2) * y"),
        ("(-x)**2", "(-x) ** 2"),
        ("(a<b)&(c<=d)", "(a < b) & (c <= d)"),
        ("f((a,),[b],k=c)", "f((a,), [b], k=c)"),
        ("a**b**c", "a ** b**c"),
    ],
)
def test_expression(text, formatted):
    assert style.expression(text) == formatted
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(formatted))


def test_an_expression_without_a_layout_is_an_error():
    with pytest.raises(TypeError, match="no layout for Lambda: lambda: 1"):
        style.expression("(lambda: 1)")


@pytest.mark.parametrize("terms", [2, 5, 9, 40])
@pytest.mark.parametrize("shape", ["sum", "product", "call", "nested"])
def test_long_statements_fit_and_keep_their_value(shape, terms):
    parts = [f"max(a, {n + 1}) * b**{n % 5} - abs(a - {n}) / (1 + b)" for n in range(terms)]
    text = {
        "sum": " + ".join(parts),
        "product": " * ".join(f"({part})" for part in parts),
        "call": f"max({', '.join(parts[:9])})",  # kernels call nothing with more arguments
        "nested": " + ".join(f"max({part}, min({part}, a))" for part in parts),
    }[shape]
    lines = ["def f(a, b):", *style.assignment("x", text), *style.returned(["x", text])]
    assert max(map(len, lines)) <= style.WIDTH
    names = {}
    exec("\n".join(lines), {"max": max, "min": min, "abs": abs}, names)
    expected = eval(text, {"a": 1.25, "b": 0.5, "max": max, "min": min, "abs": abs})
    assert names["f"](1.25, 0.5) == (pytest.approx(expected, rel=1e-13), pytest.approx(expected, rel=1e-13))


@ruff_is_here
def test_ruff_finds_nothing_to_change(tmp_path):
    for n, psi in enumerate((*activation_names(), *TEXTS)):
        generate(psi, FAMILIES[n % len(FAMILIES)]).write(tmp_path / f"k{n}.py")
    generate("relu", FAMILIES).write(tmp_path / "all.py")
    for command in (["format", "--check"], ["check", "--no-cache"]):
        run = subprocess.run(
            [RUFF, *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr


# ------------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("psi", ["relu", TEXTS[2], TEXTS[4]])
def test_a_fresh_file_matches(tmp_path, psi):
    kernels = generate(psi, ["normal", "bernoulli"])
    kernels.write(tmp_path / "k.py")
    assert check(tmp_path / "k.py") == []
    (tmp_path / "k.py").write_bytes(kernels.source.replace("\n", "\r\n").encode())
    assert check(tmp_path / "k.py") == []


def test_a_changed_file_says_what_changed(tmp_path):
    text = generate("relu", "bernoulli").source
    old = text.replace("version   ", "version   0.0.").replace("law.norm_y(mu2)", "law.norm_y(2 * mu2)")
    (tmp_path / "k.py").write_text(old, encoding="utf-8")
    found = check(tmp_path / "k.py")
    assert found[0].startswith("version: the file has 0.0.")
    assert "-    return law.norm_y(2 * mu2)" in found
    assert "+    return law.norm_y(mu2)" in found
    (tmp_path / "k.py").write_text(text.rstrip("\n"), encoding="utf-8")
    assert check(tmp_path / "k.py") == ["the last line's end differs"]


@pytest.mark.parametrize("text", ["", "PSI = 3\nFAMILIES = ('normal',)\n", "x = (", "FAMILIES = ('normal',)\n", "\0"])
def test_what_is_no_kernel_module_is_refused(tmp_path, text):
    (tmp_path / "k.py").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"k\.py is no kernel module of elbotree"):
        check(tmp_path / "k.py")


def test_a_file_is_never_run(tmp_path):
    trap = tmp_path / "sprung"
    text = generate("relu", "bernoulli").source + f"\nopen({str(trap)!r}, 'w')\n"
    (tmp_path / "k.py").write_text(text, encoding="utf-8")
    assert check(tmp_path / "k.py")
    assert not trap.exists()


def test_a_missing_file_is_a_mistake(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.py"):
        check(tmp_path / "nowhere.py")
