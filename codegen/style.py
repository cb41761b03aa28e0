"""Statements of printed kernels in the format that formatters of Python agree on (ruff, black; 120 columns), so that a
module written to a file passes `ruff format --check` as it is. Expressions are parsed into Python's own `ast` and
written back: spaces by precedence, no bracket that is not needed. What does not fit on a line is taken apart, sums one
term a line, anything else by giving its longest part a name. What the statements mean is not this module's business."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

WIDTH = 120
INDENT = "    "

_BINARY: dict[type[ast.operator], tuple[str, int]] = {
    ast.BitOr: ("|", 1),
    ast.BitAnd: ("&", 2),
    ast.Add: ("+", 3),
    ast.Sub: ("-", 3),
    ast.Mult: ("*", 4),
    ast.Div: ("/", 4),
    ast.MatMult: ("@", 4),
    ast.Pow: ("**", 6),
}
_UNARY: dict[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_COMPARISON, _SIGN, _ATOM = 0, 5, 7


def expression(text: str) -> str:
    """An expression, spaced and with the brackets that it needs."""
    return _text(ast.parse(text, mode="eval").body)


def assignment(name: str, text: str, indent: str = INDENT) -> list[str]:
    """`name = expression`, over as many lines as it takes."""
    return _statement(f"{name} = ", ast.parse(text, mode="eval").body, indent, f"{name}_")


def returned(texts: Sequence[str], indent: str = INDENT) -> list[str]:
    """`return expression`, or a tuple of several."""
    nodes = [ast.parse(text, mode="eval").body for text in texts]
    if len(nodes) == 1:
        return _statement("return ", nodes[0], indent, "part")
    line = f"{indent}return ({', '.join(map(_text, nodes))})"
    if len(line) <= WIDTH:
        return [line]
    lines: list[str] = []
    fitted: list[ast.expr] = []
    for node in nodes:
        named, rest = _shorten(node, WIDTH - len(indent) - len(INDENT) - 1, "part", len(lines))
        lines += [line for name, value in named for line in _statement(f"{name} = ", value, indent, f"{name}_")]
        fitted.append(rest)
    return [*lines, f"{indent}return (", *(f"{indent}{INDENT}{_text(node)}," for node in fitted), f"{indent})"]


def _statement(head: str, node: ast.expr, indent: str, stem: str) -> list[str]:
    if len(indent) + len(head) + len(_text(node)) <= WIDTH:
        return [f"{indent}{head}{_text(node)}"]
    terms = list(_terms(node))
    if len(terms) < 3:
        named, rest = _shorten(node, WIDTH - len(indent) - len(head), stem)
        parts = [line for name, value in named for line in _statement(f"{name} = ", value, indent, f"{name}_")]
        return [*parts, f"{indent}{head}{_text(rest)}"]
    inner = indent + INDENT
    lines: list[str] = []
    rows: list[str] = []
    for sign, term in terms:
        lead = f"{sign} " if rows else sign
        named, rest = _shorten(term, WIDTH - len(inner) - len(lead) - 2, stem, len(lines))
        lines += [line for name, value in named for line in _statement(f"{name} = ", value, indent, f"{name}_")]
        rows.append(lead + _bracketed(rest, 4 if sign else 3))
    whole = " ".join(rows)
    if len(indent) + len(head) + len(whole) <= WIDTH:
        return [*lines, f"{indent}{head}{whole}"]
    # A formatter keeps the whole sum on one line of its own where it fits there.
    rows = [whole] if len(inner) + len(whole) <= WIDTH else rows
    return [*lines, f"{indent}{head}(", *(inner + row for row in rows), f"{indent})"]


def _terms(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """(sign, term) of a chain of sums; the first sign is empty."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _terms(node.left)
        yield ("+" if isinstance(node.op, ast.Add) else "-"), node.right
    else:
        yield "", node


def _shorten(node: ast.expr, width: int, stem: str, first: int = 0) -> tuple[list[tuple[str, ast.expr]], ast.expr]:
    """Name the longest parts of an expression that fit a line themselves, until it fits: [(name, part)], what is left."""
    named: list[tuple[str, ast.expr]] = []
    while len(_text(node)) > width:
        parts = [part for part in _parts(node) if len(_text(part)) <= width]
        longest = max(parts, key=lambda part: len(_text(part)))
        name = f"{stem}{first + len(named)}"
        if len(_text(longest)) <= len(name):
            break  # nothing left that a name would shorten
        named.append((name, longest))
        node = _replaced(node, ast.dump(longest), name)
    return named, node


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions inside an expression, functions' names left out."""
    if isinstance(node, ast.Attribute):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Call) and child is node.func:
            continue
        value = child.value if isinstance(child, ast.keyword) else child
        if isinstance(value, ast.expr):
            yield value
            yield from _parts(value)


class _Replace(ast.NodeTransformer):
    def __init__(self, dumped: str, name: str) -> None:
        self.dumped, self.name = dumped, name

    def visit(self, node: ast.AST) -> ast.AST:
        if ast.dump(node) == self.dumped:
            return ast.Name(self.name, ast.Load())
        return super().generic_visit(node)


def _replaced(node: ast.expr, dumped: str, name: str) -> ast.expr:
    result = _Replace(dumped, name).visit(node)
    assert isinstance(result, ast.expr)
    return result


def _binding(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)][1]
    if isinstance(node, ast.UnaryOp):
        return _SIGN
    return _COMPARISON if isinstance(node, ast.Compare) else _ATOM


def _bracketed(node: ast.expr, least: int) -> str:
    text = _text(node)
    return text if _binding(node) >= least else f"({text})"


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.UnaryOp):
        # A formatter brackets the power under a sign: -(x**2).
        return _UNARY[type(node.op)] + _bracketed(node.operand, _ATOM)
    if isinstance(node, ast.Compare):
        rest = (f" {_COMPARE[type(op)]} {_bracketed(x, 1)}" for op, x in zip(node.ops, node.comparators, strict=True))
        return _bracketed(node.left, 1) + "".join(rest)
    if isinstance(node, ast.Call):
        given = [_text(x) for x in node.args] + [f"{k.arg}={_text(k.value)}" for k in node.keywords]
        return f"{_text(node.func)}({', '.join(given)})"
    if isinstance(node, ast.Attribute):
        return f"{_text(node.value)}.{node.attr}"
    if isinstance(node, ast.Tuple | ast.List):
        left, right = "()" if isinstance(node, ast.Tuple) else "[]"
        comma = "," if isinstance(node, ast.Tuple) and len(node.elts) == 1 else ""
        return f"{left}{', '.join(map(_text, node.elts))}{comma}{right}"
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant):
        return f'"{node.value}"' if isinstance(node.value, str) else repr(node.value)
    raise TypeError(f"no layout for {type(node).__name__}: {ast.unparse(node)}; add one to `style._text`")


def _binary(node: ast.BinOp) -> str:
    sign, binding = _BINARY[type(node.op)]
    if not isinstance(node.op, ast.Pow):
        return f"{_bracketed(node.left, binding)} {sign} {_bracketed(node.right, binding + 1)}"
    left, right = _bracketed(node.left, binding + 1), _bracketed(node.right, _SIGN)
    close = _simple(node.left) and _simple(node.right)
    return f"{left}**{right}" if close else f"{left} ** {right}"


def _simple(node: ast.expr) -> bool:
    """Whether a formatter sets ** close to an operand: names, attributes of names, numbers and signed numbers."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    if isinstance(node, ast.Attribute):
        return _simple(node.value)
    return isinstance(node, ast.Name | ast.Constant)
