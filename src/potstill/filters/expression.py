"""`filter.expression`: a condition over the fields of a row, such as `score >= 0.5 and len(sql) < 2000`.

The language is simpleeval's (Python's operators, evaluated by a walk over the syntax tree, never by `eval`), made
smaller: a dot reaches only into objects of the row, and the functions are the ones below. There is no way to a Python
object's attributes, no loop, and powers and repeated texts are bounded by the library.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable
from typing import Any

import simpleeval

from potstill.errors import ConfigError
from potstill.records import ADDED_FIELDS, Row

REASON = "expression"
#: The expression could not be evaluated on the row, such as a comparison with a field that is null.
ERROR_REASON = "expression_error"

_MAX_MATCHED_CHARS = 100_000
#: Levels of the syntax tree; a level takes a few of Python's own.
_MAX_DEPTH = 100
_MAX_QUOTED_CHARS = 120
#: As other languages write them.
_CONSTANTS = {
    "true": "True",
    "false": "False",
    "null": "None",
    "none": "None",
    "TRUE": "True",
    "FALSE": "False",
    "NULL": "None",
}


def _length(value: Any) -> int:
    return 0 if value is None else len(value)


def _matches(text: Any, pattern: str) -> bool:
    return isinstance(text, str) and re.search(pattern, text[:_MAX_MATCHED_CHARS]) is not None


def _lower(text: Any) -> str:
    return str(text or "").lower()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": _length,
    "lower": _lower,
    "matches": _matches,
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
    "startswith": lambda text, start: isinstance(text, str) and text.startswith(start),
    "endswith": lambda text, end: isinstance(text, str) and text.endswith(end),
}


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, int | float):
        return left % right
    raise TypeError("% is for numbers; with a text it would format, to any length")


class _Evaluator(simpleeval.EvalWithCompoundTypes):  # type: ignore[misc]  # it has no type information
    """simpleeval without comprehensions and without attributes of Python objects."""

    def __init__(self) -> None:
        super().__init__(functions=dict(FUNCTIONS))
        self.operators[ast.Mod] = _remainder
        for kind in (ast.ListComp, ast.GeneratorExp, ast.Call, ast.Attribute):
            self.nodes.pop(kind, None)
        self.nodes[ast.Attribute] = self._member
        self.nodes[ast.Call] = self._call

    def _member(self, node: ast.Attribute) -> Any:
        value = self._eval(node.value)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise simpleeval.InvalidExpression(f".{node.attr} of something that is no object")
        return value.get(node.attr)

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in {*FUNCTIONS, "get"} or node.keywords:
            raise simpleeval.InvalidExpression("only the listed functions can be called")
        arguments = [self._eval(argument) for argument in node.args]
        return self.functions[node.func.id](*arguments)


class Expression:
    """A compiled condition.

    Attributes:
        text: As written in the config.
        names: The fields of the row that it uses.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._evaluator = _Evaluator()
        self._tree = _parse(text)
        self.names = _names(self._tree)
        self._unseen = set(self.names) - set(ADDED_FIELDS)

    def __call__(self, row: Row) -> str | None:
        """Return why the row does not pass, or None."""
        self._unseen.difference_update(row)
        self._evaluator.names = {name: row.get(name) for name in self.names}
        self._evaluator.functions["get"] = lambda name, default=None: row.get(name, default)
        try:
            passed = self._evaluator.eval(self.text, previously_parsed=self._tree)
        except (simpleeval.InvalidExpression, TypeError, ValueError, ArithmeticError, LookupError, re.error):
            return ERROR_REASON
        return None if passed else REASON

    def check_names(self) -> None:
        """Raise where a name was met in no row: it is misspelled.

        Raises:
            ConfigError: Naming the field and the nearest known one.
        """
        for name in sorted(self._unseen):
            near = difflib.get_close_matches(name, ADDED_FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"filter.expression: no row has the field {name!r}{hint} "
                f"(for a field that few rows have, write get({name!r}))"
            )


def _parse(text: str) -> ast.expr:
    shown = repr(text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}…")
    try:
        tree: ast.expr = simpleeval.SimpleEval.parse(text.strip())
    except (SyntaxError, simpleeval.InvalidExpression, ValueError, MemoryError, RecursionError) as error:
        raise ConfigError(f"filter.expression: {shown} cannot be read: {str(error) or 'nested too deeply'}") from error
    allowed = _allowed_nodes()
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            raise ConfigError(f"filter.expression: {shown}: {type(node).__name__} is not part of the language")
        if isinstance(node, ast.Call):
            _check_call(node, shown)
        if isinstance(node, ast.Name) and node.id in _CONSTANTS:
            raise ConfigError(f"filter.expression: {shown}: found {node.id}, write {_CONSTANTS[node.id]}")
    if _is_deeper([tree], _MAX_DEPTH):
        raise ConfigError(f"filter.expression: {shown}: nested more than {_MAX_DEPTH} levels deep")
    return tree


def _is_deeper(level: list[ast.AST], limit: int) -> bool:
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def _allowed_nodes() -> tuple[type[ast.AST], ...]:
    return (
        *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call, ast.Name, ast.Attribute, ast.Subscript),
        *(
            ast.Constant,
            ast.List,
            ast.Tuple,
            ast.Set,
            ast.boolop,
            ast.operator,
            ast.unaryop,
            ast.cmpop,
            ast.expr_context,
        ),
        ast.Expr,
    )


def _check_call(node: ast.Call, shown: str) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    known = {*FUNCTIONS, "get"}
    if name not in known or node.keywords:
        raise ConfigError(f"filter.expression: {shown}: {name}(…) is unknown; allowed are {', '.join(sorted(known))}")
    if name == "matches":
        _check_patterns(node.args[1:], shown)


def _check_patterns(patterns: list[ast.expr], shown: str) -> None:
    for pattern in patterns:
        if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
            try:
                re.compile(pattern.value)
            except re.error as error:
                raise ConfigError(
                    f"filter.expression: {shown}: {pattern.value!r} is no regular expression: {error}"
                ) from error


def _names(tree: ast.expr) -> list[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
    return sorted(names - {"True", "False", "None"})
