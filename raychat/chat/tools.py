"""The calculator that a model may call in the middle of its answer: arithmetic and counting letters.

An expression is parsed to a syntax tree and evaluated node by node; no text reaches `eval`. The length of the
expression and the size of every intermediate number are bounded, and therefore the time.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from decimal import Decimal

MAX_CHARS = 256  # of an expression
MAX_MAGNITUDE = 1e30  # of every intermediate number; it also bounds a power before it is computed
SIGNIFICANT_DIGITS = 10  # of a result that is not a whole number

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ARITHMETIC = re.compile(r"[0-9eE.+\-*/%()\s]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def calculator(expression: str) -> str | None:
    """Compute an expression as GSM8K writes it; return the result as text, or None for anything else.

    It knows numbers (also 1,000), + - * / // % **, parentheses, signs, and `count` of a string in another.

    >>> calculator("48/2"), calculator("5 * .20"), calculator("1,000 + 0.5"), calculator("2**0.5")
    ('24', '1', '1000.5', '1.414213562')
    >>> calculator("'strawberry'.count('r')")
    '3'
    >>> calculator("1/0"), calculator("9**9**9"), calculator("__import__('os')")
    (None, None, None)
    """
    text = expression.strip()
    if len(text) > MAX_CHARS or "\\" in text:
        return None
    if "'" not in text and '"' not in text:
        text = _THOUSANDS.sub("", text)
        if not _ARITHMETIC.fullmatch(text):
            return None
    try:
        return _as_text(_value(ast.parse(text, mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None  # Python's parser raises RecursionError and MemoryError for deep nesting


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _value(operand)
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.BinOp(left, ast.Pow(), right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(ast.Attribute(ast.Constant(str(text)), "count"), [ast.Constant(str(part))], []):
            return text.count(part)
    raise ValueError("neither arithmetic nor a count")


def _power(base: Number, exponent: Number) -> Number:
    if base != 0 and exponent * math.log10(abs(base)) > math.log10(MAX_MAGNITUDE):
        raise ValueError("too large")
    return _bounded(base**exponent)


def _bounded(value: Number | complex) -> Number:
    if isinstance(value, complex) or not abs(value) <= MAX_MAGNITUDE:  # also refuses NaN
        raise ValueError("not a real number, or too large")
    return value


def _as_text(value: Number) -> str:
    """Write a number as GSM8K does: 72, 0.2, never 72.0 or 1e-05."""
    if value == int(value):
        return str(int(value))
    return format(Decimal(f"{value:.{SIGNIFICANT_DIGITS}g}").normalize(), "f")
