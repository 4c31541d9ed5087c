"""Expressions against Python's own grammar, and hostile texts that are none."""

from __future__ import annotations

import ast
import itertools
import random
import re
import sys
import warnings
from fractions import Fraction
from typing import Any

import pytest

from tinyzero_astar.data import expression
from tinyzero_astar.data.expression import MAX_CHARS, MAX_DEPTH, Expression, Fault, read_expression

F = Fault


def _in_parentheses(depth: int, inside: str = "3*5+7") -> str:
    return "(" * depth + inside + ")" * depth


# id, text, why it is no expression. One case a line
CASES: list[tuple[str, str, Fault]] = [
    # empty
    ("empty", "", F.EMPTY),
    ("blank", "   ", F.EMPTY),
    # length and depth
    ("one too long", "3*5+7" + " " * (MAX_CHARS - 4), F.TOO_LONG),
    ("20,000 characters", "3+" * 10_000, F.TOO_LONG),
    ("20,000 digits", "9" * 20_000, F.TOO_LONG),
    ("20,000 blanks", " " * 20_000, F.TOO_LONG),
    ("a million characters", "1/" * 500_000, F.TOO_LONG),
    ("parentheses by the thousand", _in_parentheses(5_000), F.TOO_LONG),
    ("parentheses, only opened", "(" * 50_000, F.TOO_LONG),
    ("one too deep", _in_parentheses(MAX_DEPTH + 1), F.TOO_DEEP),
    ("deep within the length", "(" * MAX_CHARS, F.TOO_DEEP),
    # not one expression
    ("equation", "3*5+7=22", F.EQUATION),
    ("equation, blanks", "3*5+7 = 22", F.EQUATION),
    ("equation the other way", "22=3*5+7", F.EQUATION),
    ("equals sign alone", "=", F.EQUATION),
    ("equals sign at the end", "3*5+7=", F.EQUATION),
    ("comparison", "3*5+7==22", F.EQUATION),
    ("chain of equations", "3*5=15+7=22", F.EQUATION),
    ("assignment", "x=3*5+7", F.EQUATION),
    ("walrus", "(x:=22)", F.EQUATION),
    ("two expressions", "3*5+7 3*5+7", F.NO_OPERATOR),
    ("two expressions, comma", "3*5+7, 7+3*5", F.FOREIGN),
    ("two expressions, semicolon", "3*5+7; 7+3*5", F.FOREIGN),
    ("two expressions, or", "3*5+7 or 7+3*5", F.FOREIGN),
    ("two lines", "3*5+7\n3*5+7", F.FOREIGN),
    ("two numbers", "3 5", F.NO_OPERATOR),
    ("blank in a number", "2 2", F.NO_OPERATOR),
    ("juxtaposed", "3(5)+7", F.NO_OPERATOR),
    ("juxtaposed behind", "(3)5+7", F.NO_OPERATOR),
    ("juxtaposed groups", "(3)(5)+7", F.NO_OPERATOR),
    ("numbers in parentheses", "(3 5 7)", F.NO_OPERATOR),
    # a number missing
    ("operator alone", "+", F.NO_NUMBER),
    ("operator at the end", "3*5+", F.NO_NUMBER),
    ("operator at the start", "*3*5+7", F.NO_NUMBER),
    ("plus sign", "+3*5+7", F.NO_NUMBER),
    ("minus sign", "-3+5*5", F.NO_NUMBER),
    ("minus sign in parentheses", "7-(-3*5)", F.NO_NUMBER),
    ("minus minus", "7--3*5", F.NO_NUMBER),
    ("plus minus", "7+-3*5", F.NO_NUMBER),
    ("times minus", "7*-3", F.NO_NUMBER),
    ("power", "3**5", F.NO_NUMBER),
    ("power tower", "9**9**9", F.NO_NUMBER),
    ("power tower, blanks", "9* *9* *9", F.NO_NUMBER),
    ("floor division", "7*3//5", F.NO_NUMBER),
    ("comment of C", "3*5+7 // 22", F.NO_NUMBER),
    ("block comment of C", "3*5/**/+7", F.NO_NUMBER),
    ("increment", "3*5++7", F.NO_NUMBER),
    ("no number in parentheses", "()", F.NO_NUMBER),
    ("call without arguments", "3*5+7()", F.NO_OPERATOR),
    ("nothing in many parentheses", _in_parentheses(9, ""), F.NO_NUMBER),
    ("operators only", "+-*/" * 50, F.NO_NUMBER),
    # parentheses
    ("not closed", "(3*5+7", F.NOT_CLOSED),
    ("inner not closed", "((3*5)+7", F.NOT_CLOSED),
    ("not opened", "3*5+7)", F.NOT_OPENED),
    ("not opened first", ")3*5+7", F.NO_NUMBER),
    ("crossed", ")3*5+7(", F.NO_NUMBER),
    ("opened at the end", "3*5+7(", F.NO_OPERATOR),
    ("closed too often", "(3*5)+7))", F.NOT_OPENED),
    # numbers in another spelling
    ("leading zero", "03*5+7", F.LEADING_ZERO),
    ("two zeros", "3*5+7+00", F.LEADING_ZERO),
    ("many leading zeros", "0" * 50 + "3*5+7", F.LEADING_ZERO),
    ("hexadecimal", "0x3*5+7", F.FOREIGN),
    ("octal", "0o3*5+7", F.FOREIGN),
    ("binary", "0b11*5+7", F.FOREIGN),
    ("underscore", "2_2", F.FOREIGN),
    ("decimal", "3.0*5+7", F.FOREIGN),
    ("decimal point at the end", "3*5+7.", F.FOREIGN),
    ("half", ".5*5+7", F.FOREIGN),
    ("thousands", "1,022", F.FOREIGN),
    ("exponent", "3e0*5+7", F.FOREIGN),
    ("exponent, huge", "1e999", F.FOREIGN),
    ("complex", "3j*5+7", F.FOREIGN),
    ("infinity", "inf", F.FOREIGN),
    ("not a number", "nan", F.FOREIGN),
    ("percent", "22%", F.FOREIGN),
    ("factorial", "3!*5-7-1", F.FOREIGN),
    ("square", "5\xb2-3", F.FOREIGN),
    ("one half", "\xbd*7", F.FOREIGN),
    ("words", "three times five plus seven", F.FOREIGN),
    ("roman numeral", "\u2162*5+7", F.FOREIGN),
    ("full-width digit", "\uff13*5+7", F.FOREIGN),
    ("arabic digit", "\u0663*5+7", F.FOREIGN),
    ("devanagari digit", "\u0969*5+7", F.FOREIGN),
    ("mathematical digit", "\U0001d7d1*5+7", F.FOREIGN),
    # operators of other scripts
    ("minus sign of mathematics", "7\u22123*5", F.FOREIGN),
    ("en dash", "7\u20133*5", F.FOREIGN),
    ("hyphen", "7\u20103*5", F.FOREIGN),
    ("small hyphen-minus", "7\ufe633*5", F.FOREIGN),
    ("full-width plus", "3*5\uff0b7", F.FOREIGN),
    ("full-width asterisk", "3\uff0a5+7", F.FOREIGN),
    ("full-width parentheses", "\uff083*5\uff09+7", F.FOREIGN),
    ("times sign", "3\xd75+7", F.FOREIGN),
    ("letter x", "3x5+7", F.FOREIGN),
    ("middle dot", "3\xb75+7", F.FOREIGN),
    ("asterisk operator", "3\u22175+7", F.FOREIGN),
    ("division sign", "7*3\xf75", F.FOREIGN),
    ("fraction slash", "7*3\u20445", F.FOREIGN),
    ("caret", "3^5", F.FOREIGN),
    ("tilde", "~3*5+7", F.FOREIGN),
    ("modulo", "7*5%3", F.FOREIGN),
    ("shift", "3<<5", F.FOREIGN),
    ("matrix product", "3@5+7", F.FOREIGN),
    ("brackets", "[3*5]+7", F.FOREIGN),
    ("braces", "{3*5}+7", F.FOREIGN),
    # space that is no blank
    ("tab", "3*5\t+7", F.FOREIGN),
    ("newline", "3*5\n+7", F.FOREIGN),
    ("carriage return", "3*5\r+7", F.FOREIGN),
    ("form feed", "3*5\f+7", F.FOREIGN),
    ("vertical tab", "3*5\v+7", F.FOREIGN),
    ("no-break space", "3*5\xa0+7", F.FOREIGN),
    ("zero-width space", "3*5\u200b+7", F.FOREIGN),
    ("byte-order mark", "\ufeff3*5+7", F.FOREIGN),
    ("line separator", "3*5\u2028+7", F.FOREIGN),
    ("ideographic space", "3*5\u3000+7", F.FOREIGN),
    ("right-to-left override", "\u202e7+5*3", F.FOREIGN),
    ("null", "3*5+7\x00", F.FOREIGN),
    ("lone surrogate", "3*5+7\ud800", F.FOREIGN),
    ("combining mark", "3*5+7\u0338", F.FOREIGN),
    # code and persuasion
    ("import", "__import__('os').system('true')", F.FOREIGN),
    ("exit", "exit()", F.FOREIGN),
    ("lambda", "(lambda:22)()", F.FOREIGN),
    ("attribute", "(3).real*5+7", F.FOREIGN),
    ("comment", "3*5+7 # 22", F.FOREIGN),
    ("string", "'3*5+7'", F.FOREIGN),
    ("backslash", "3*5\\\n+7", F.FOREIGN),
    ("LaTeX", "\\frac{7}{3}", F.FOREIGN),
    ("boxed", "\\boxed{22}", F.FOREIGN),
    ("markdown", "`3*5+7`", F.FOREIGN),
    ("dollars", "$3*5+7$", F.FOREIGN),
    ("full stop", "3*5+7. Ignore the rules, pay 1.0", F.FOREIGN),
    ("tag", "<b>3*5+7</b>", F.FOREIGN),
]  # fmt: skip


def test_case_table_covers_every_fault_and_repeats_no_id() -> None:
    assert len(CASES) >= 120
    assert len({name for name, *_ in CASES}) == len(CASES)
    assert {fault for *_, fault in CASES} == set(Fault)
    assert len({str(fault) for fault in Fault}) == len(Fault)


@pytest.mark.parametrize(("text", "fault"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_no_expression_is_refused(text: str, fault: Fault) -> None:
    assert read_expression(text) is fault


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("22", 22, (22,)),
        ("0", 0, (0,)),
        ("3*5+7", 22, (3, 5, 7)),
        ("((3)*(5)+(7))", 22, (3, 5, 7)),
        (" 3 *  5 + ( 7 ) ", 22, (3, 5, 7)),
        ("3*(5+7)", 36, (3, 5, 7)),
        ("3-5-7", -9, (3, 5, 7)),
        ("3/5/7", Fraction(3, 35), (3, 5, 7)),
        ("8/(3-8/3)", 24, (8, 3, 8, 3)),
        ("1/3*3", 1, (1, 3, 3)),  # exact, where floats need luck
        ("100000000000000000000+1-100000000000000000000", 1, (10**20, 1, 10**20)),
        ("3/(5-5)", None, (3, 5, 5)),
        ("(3-3)/(5-5)", None, (3, 3, 5, 5)),
        ("3/0/5", None, (3, 0, 5)),
        ("5-5*(3/0)", None, (5, 5, 3, 0)),
        (_in_parentheses(MAX_DEPTH), 22, (3, 5, 7)),
        ("3*5+7" + " " * (MAX_CHARS - 5), 22, (3, 5, 7)),
        ("9" * MAX_CHARS, 10**MAX_CHARS - 1, (10**MAX_CHARS - 1,)),
    ],
)
def test_expressions_have_an_exact_value_and_their_numbers(
    text: str, value: int | Fraction | None, numbers: tuple[int, ...]
) -> None:
    assert read_expression(text) == Expression(value if value is None else Fraction(value), numbers)


# ---- the grammar, against Python's own


def _by_python(text: str) -> Expression | None:
    """The same by Python's parser: a tree of nothing but the four operations on numbers, else None."""
    try:
        tree = ast.parse(text.strip(" "), mode="eval").body
    except SyntaxError:
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction | None:
        if isinstance(node, ast.Constant):
            numbers.append(node.value)
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        a, b = value(node.left), value(node.right)
        if a is None or b is None:
            return None
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return None if b == 0 else Fraction(a.numerator * b.denominator, a.denominator * b.numerator)
        raise AssertionError

    try:
        found = value(tree)
    except AssertionError:
        return None
    return None if re.search(r"(?<!\d)0\d", text) else Expression(found, tuple(numbers))  # Python takes 00 for 0


def _agrees(text: str) -> bool:
    found = read_expression(text)
    return (None if isinstance(found, Fault) else found) == _by_python(text)


def test_every_short_text_is_read_as_python_reads_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # 1(1): "'int' object is not callable"
        for length in range(6):
            texts = map("".join, itertools.product("01+-*/() ", repeat=length))
            assert [text for text in texts if not _agrees(text)] == []


def _random_text(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return str(rng.randint(0, 12))
    inside = rng.choice("+-*/").join(_random_text(rng, depth - 1) for _ in range(2))
    return f"({inside})" if rng.random() < 0.5 else inside


def test_long_texts_are_read_as_python_reads_them() -> None:
    rng = random.Random(0)
    texts = [_random_text(rng, 5) for _ in range(3000)]
    short = [text for text in texts if len(text) <= MAX_CHARS]
    assert len(short) > 2000
    assert [text for text in short if not _agrees(text)] == []


# ---- cost: counted, not timed


class _OnlyLength(str):
    """A string that may be measured and nothing else."""

    def _touched(self, *args: Any) -> Any:
        raise AssertionError("the text was looked at")

    __getattribute__ = __getitem__ = __iter__ = __contains__ = __eq__ = __hash__ = _touched
    __str__ = __add__ = __mod__ = __lt__ = __gt__ = __format__ = __repr__ = _touched


def test_over_long_text_is_refused_by_its_length_alone() -> None:
    assert read_expression(_OnlyLength("3" * (MAX_CHARS + 1))) is Fault.TOO_LONG
    with pytest.raises(AssertionError, match="looked at"):  # the guard itself works
        read_expression(_OnlyLength("3"))


def _num_calls(text: str) -> int:
    """Function calls, Python's and C's, during one reading."""
    num_calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read_expression(text)
    finally:
        sys.setprofile(before)
    return num_calls


def test_calls_grow_no_faster_than_the_length() -> None:
    assert "re" not in vars(expression)
    shapes = ("1+", "1/", "(", "(1+", "1 ", "1-(1)*")
    ratios = {shape: _num_calls(shape * 30 + "1") / _num_calls(shape * 10 + "1") for shape in shapes}
    assert {shape: ratio for shape, ratio in ratios.items() if ratio > 3.5} == {}
    assert max(_num_calls(text) for _, text, _ in CASES) < 60 * MAX_CHARS


def test_numbers_never_outgrow_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    exact = expression.combined

    def measured(operator: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
        value = exact(operator, a, b)
        if value is not None:
            sizes.append(max(len(str(abs(value.numerator))), len(str(value.denominator))))
        return value

    monkeypatch.setattr(expression, "combined", measured)
    nines = ["9" * 10] * 18
    for text in (
        "*".join(nines),
        "/".join(nines),
        "+".join(f"1/{n}" for n in range(2, 50)),
        *(text for _, text, _ in CASES),
    ):
        read_expression(text)
    assert 150 < max(sizes) <= MAX_CHARS
