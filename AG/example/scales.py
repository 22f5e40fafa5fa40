"""Lists of image scales as cirtorch writes them: ``[1, 1/2**(1/2), 1/2]``."""

import ast

from retrieval.errors import InputError


def parse_scales(name: str, text: str) -> tuple[float, ...]:
    """Numbers between commas, in brackets or not; each may be a fraction or a power."""
    try:
        tree = ast.parse(f"[{text.strip().removeprefix('[').removesuffix(']')}]", mode="eval").body
        values = tuple(_number(each) for each in tree.elts) if isinstance(tree, ast.List) else ()
    except (SyntaxError, ArithmeticError, ValueError, TypeError) as error:
        raise InputError(f"{name} {text!r}: {error}; expected as '[1, 1/2**(1/2), 1/2]'") from error
    if not values or not all(0 < value < 100 for value in values):
        raise InputError(f"{name} {text!r}: expected positive numbers between commas")
    return values


def _number(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _number(left) / _number(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return float(_number(left) ** _number(right))
    raise ValueError("only numbers, / and ** are understood")
