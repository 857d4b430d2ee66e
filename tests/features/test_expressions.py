"The language: pyqlib's texts read as pyqlib reads them, everything else refused with its place and a remedy."

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL
from qlib.data.ops import OpsList

from tests.features.node_strategies import nodes
from tests.features.qlib_series import expression, series
from tradenb.core.errors import ExpressionError, InputError, one_line
from tradenb.features.expressions import (
    ELSEWHERE,
    MAX_DEPTH,
    MAX_LENGTH,
    OPERATORS,
    WINDOWS,
    Node,
    parse,
    refusal,
)

RISES = "($close>Ref($close,1))"
ONES = f"If({RISES},1,0)"


def refused(text: str, **arguments: object) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        parse(text, **arguments)
    return caught.value


def outcome(text: str) -> Node | ExpressionError:
    try:
        return parse(text)
    except ExpressionError as error:
        return error


# Reading


@pytest.mark.parametrize("loader", [Alpha158DL, Alpha360DL])
def test_every_feature_of_qlib_s_own_sets_is_called_what_pyqlib_calls_it(loader: type) -> None:
    texts, _ = loader.get_feature_config()
    assert [str(parse(t)) for t in texts] == [str(expression(t)) for t in texts]


SIGNS = """
$close+1; 1+$close; $close-1; 1-$close; $close*2; 2*$close; $close/2; 2/$close; $close**2; 2**$close; 2*3*$close; $close*2*3
-1*$close; $close*-1; $close+-1; 1/2*$close; (1+2)/4*$close; 2**-1*$close; $close**-2**2; --1*$close; +1*$close; 7*(8-9)+$open
$close>1; 1>$close; $close>=1; 1>=$close; $close<1; 1<$close; $close<=1; 1<=$close; $close==1; 1==$close; $close!=1; 1!=$close
$close>$open; ($close>$open)&($open>$low); ($close>$open)|($open>$low)&($low>1); ($close>1)&1; 1&($close>1); 1|($close>1)
$close+$open*$low; ($close+$open)*$low; $close-$open-$low; $close-($open-$low); $close/$open/$low; $close**$open**$low; 1e-12+$volume
Mean($close,5); Mean($close, N=5); Mean(N=5,feature=$close); Mean($close,5*2); Ref($close,-2); Ref( $close , 1 ); Delta($close,0)
Quantile($close,5,0.8); Quantile($close,5,qscore=.8); Quantile($close,0,1); EMA($close,0.3); EMA($close,5.5); EMA($close,0)
Corr($close,Log($volume+1),5); Cov(feature_right=$open,feature_left=$close,N=0); If($close>$open,1,0); If($close,$open,$low)
Greater($close,0); Greater(0,$close); Less($close,$open); Power($close,2); Gt(1,$close); And($close>1,$open>1); Not($close>1); Eq($close,1)
$close + 1.50; $close+1E3; $close+.5; $close+5.; $close+00; Mean ($close,5); (((($close)))); 0.1*$close; 1e22*$close; 123456789012*$close
"""


@pytest.mark.parametrize("text", [t.strip() for line in SIGNS.split("\n") for t in line.split(";") if t.strip()])
def test_signs_brackets_numbers_and_keywords_are_read_as_pyqlib_reads_them(text: str) -> None:
    assert str(parse(text)) == str(expression(text))


def test_all_operators_of_pyqlib_are_known_or_refused_by_name() -> None:
    assert {c.__name__ for c in OpsList} | {"P", "PRef"} == set(OPERATORS) | set(ELSEWHERE)


def test_parameters_have_the_names_of_pyqlib_s_constructors() -> None:
    for operator in OpsList:
        if operator.__name__ in OPERATORS:
            code = operator.__init__.__code__
            assert OPERATORS[operator.__name__] == code.co_varnames[1 : code.co_argcount]


@given(nodes())
@settings(max_examples=300)
def test_any_tree_written_and_read_again_is_the_same_tree(node: Node) -> None:
    again = parse(str(node))
    assert again == node
    assert (again.op, again.args, again.params, again.dtype) == (node.op, node.args, node.params, node.dtype)
    assert repr(again.params) == repr(node.params)


@given(nodes())
@settings(max_examples=150)
def test_any_tree_is_called_what_pyqlib_calls_it(node: Node) -> None:
    assert str(expression(str(node))) == str(node)


def test_a_long_expression_may_stand_on_several_lines() -> None:
    assert str(parse("  $close\n  / Mean($close,\n\t5)\n")) == "Div($close,Mean($close,5))"


def test_fields_may_have_any_name_where_any_is_allowed() -> None:
    assert str(parse("$市盈率（TTM）/$5+$_x", None)) == "Add(Div($市盈率（TTM）,$5),$_x)"
    assert parse("$sentiment*2", {"sentiment"}).args[0].params == ("sentiment",)


def test_nodes_are_equal_by_structure_and_keep_whole_numbers_and_fractions_apart() -> None:
    assert parse("$close + 1") == parse("Add($close,1)") != parse("$close+1.0")
    assert len({parse("$close+1"), parse("Add($close, 1)"), parse("$close+1.0")}) == 2
    assert parse("$close*0.0") != parse("$close*-0.0")


def test_nodes_travel_to_other_processes() -> None:
    node = parse("Corr($close/Ref($close,1), Log($volume+1), 20)")
    assert pickle.loads(pickle.dumps(node)) == node


# Types

C, R, I, M = "$close", RISES, ONES, "Mean($open,3)"  # float, condition, whole number, 64-bit float  # noqa: E741
OPERANDS = (C, R, I, M)
TYPED = [
    *(f"{a}{sign}{b}" for sign in "+-*/" for a in OPERANDS for b in (*OPERANDS, "1", "1.5")),
    *(f"{n}{sign}{b}" for sign in "+-*/" for n in ("2", "0.5") for b in OPERANDS),
    *(f"{op}({a},{b})" for op in ("Greater", "Less", "Gt", "Eq", "Ne", "Le") for a in OPERANDS for b in (*OPERANDS, "1", "0.5")),
    *(f"{op}({n},{b})" for op in ("Greater", "Lt") for n in ("2", "0.5") for b in OPERANDS),
    *(f"{op}({a},{b})" for op in ("And", "Or") for a in (R, I) for b in (R, I, "1")),
    *(f"{op}(1,{b})" for op in ("And", "Or") for b in (R, I)),
    *(f"Power({a},{b})" for a in (C, M, "2", "0.5") for b in (C, M, "2", "0.5", "-1") if a in (C, M) or b in (C, M)),
    *(f"{op}({a})" for op in ("Abs", "Sign") for a in OPERANDS),
    *(f"Log({a})" for a in (C, M)),
    *(f"Not({a})" for a in (R, I)),
    *(f"If({c},{a},{b})" for c in OPERANDS for a in (*OPERANDS, "1", "0.5") for b in (*OPERANDS, "0", "0.5")),
    *(f"{op}({a},{n})" for op in ("Ref", "Delta") for a in (C, I, M) for n in (-3, 0, 1, 4)),
    *(f"{op}({a},{n})" for op in sorted(WINDOWS - {"Ref", "Delta", "Quantile", "Corr", "Cov"}) for a in OPERANDS for n in (0, 5)),
    *(f"Quantile({a},{n},0.8)" for a in OPERANDS for n in (0, 5)),
    *(f"{op}({a},{b},5)" for op in ("Corr", "Cov") for a in OPERANDS for b in OPERANDS),
    *(f"Cov({a},{a},0)" for a in OPERANDS),
    *(f"EMA({a},{n})" for a in OPERANDS for n in ("0.3", "5.5", "1")),
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_the_type_is_the_one_of_pyqlib_s_series(text: str) -> None:
    ours = parsed.dtype if isinstance(parsed := outcome(text), Node) else "refused"
    try:
        theirs = np.dtype(series(text).dtype).str.lstrip("<|")
    except (TypeError, NotImplementedError):
        theirs = "refused"  # what pyqlib cannot compute
    assert ours == theirs


@given(nodes())
@settings(max_examples=300)
def test_the_type_of_any_expression_is_the_one_of_pyqlib_s_series(node: Node) -> None:
    assert np.dtype(node.dtype) == series(str(node)).dtype


# Refusals

PLACES = [  # text, the place that the column points at behind ¦, and the suggestion
    ("¦Meen($close,5)/$close", "Mean"),
    ("$open/¦mean($close,5)", "Mean"),
    ("¦STD($close,5)", "Std"),
    ("Mean(¦$clse,5)", "$close"),
    ("$close/¦$Open", "$open"),
    ("Mean(¦close,5)", "$close"),
    ("$open-¦Mean", "Mean($close,20)"),
    ("1-(¦-$close)", "(0-$close)"),
    ("$open*¦-($close+1)", "(0-($close+1))"),
    ("¦+$close", "$close"),
    ("¦not ($close>1)", "Not(($close>1))"),
    ("$close>¦1 & $open>1", "($close>1) & ($open>1)"),
    ("1 < $close < ¦2", "(1<$close) & ($close<2)"),
    ("$open+$close ¦% 2", "one of + - * / ** & |"),
    ("$open+$close ¦// 2", "one of + - * / ** & |"),
    ("$open+Std($close,¦-5)", "Std($close,5)"),
    ("Mean($close,¦5.0)", "Mean($close,5)"),
    ("Mean($close,¦0.5)", "Mean($close,1)"),
    ("Ref($close,¦1.0)", "Ref($close,1)"),
    ("Skew($close,¦2)", "Skew($close,3)"),
    ("Kurt($close,¦3)", "Kurt($close,4)"),
    ("Corr($close,$open,¦0)", "Corr($close,$open,250)"),
    ("Mean($close,¦$open)", "Mean($close,20)"),
    ("Mean(¦5,20)", "Mean($close,20)"),
    ("Corr($close,¦1,20)", "Corr($close,$volume,20)"),
    ("EMA($close,¦-1)", "EMA($close,1)"),
    ("EMA($close,¦-0.5)", "EMA($close,20)"),
    ("Ref($close,¦-1.5)", "Ref($close,-2)"),
    ("Skew($close,¦-2)", "Skew($close,3)"),
    ("Mean($close,¦1e300)", "0 for all sessions since the listing"),
    ("Ref($close,¦-200000)", "Ref($close,20)"),
    ("Corr($close,$open,¦200000)", "Corr($close,$volume,20)"),
    ("Quantile($close,5,¦80)", "Quantile($close,20,0.8)"),
    ("$open+Ref(¦$close>$open,1)", "If(Gt($close,$open),1,0)"),
    ("Delta(¦$close>$open,1)", "If(Gt($close,$open),1,0)"),
    ("2-Log(¦$close>$open)", "Gt($close,$open)*1.0"),
    (f"$close**¦{ONES}", f"{parse(ONES)}*1.0"),
    ("($close>1)&¦$open", "$open!=0"),
    ("Not(¦$close)", "$close!=0"),
    ("1/¦Feature('close')", "$close"),
    ("$close/¦ChangeInstrument('SPY',$close)", "that series as a field of its own"),
    ("Mean(¦P(Mean($$roe,5)),5)", "a field of daily bars, like $close"),
    ("$open+¦$$roe", "$roe"),
    ("$open+¦$", "$close"),
    ("$open¦$close", "*$close or +$close"),
    ("2¦$close", "*$close or +$close"),
    ("$close ¦5", "operands joined by signs, like $close/$open"),
    ("$close*¦5d", "a number like 20, 0.5 or 1e-12"),
    ("$close*¦0x10", "a number like 20, 0.5 or 1e-12"),
    ("$close*¦1e999", "a number like 1e-12"),
    ("$close*¦9**9**9", "a number like 1e-12"),
    ("$close*(¦1/0)", "a number like 1e-12"),
    ("$close*¦9223372036854775808", "9.22337e+18"),
    ("If($close>1,¦True,0)", "1 or 0"),
    ("¦$close(5)", "a sign before the bracket, like $close*(1+$open)"),
    ("1+¦$close.mean()", "Mean($close,20)"),
    ("¦np.log($close)", "Log($close)"),
    ("$open+¦Mean($close)", "Mean($close,20)"),
    ("$open+¦Mean($close,5,6)", "Mean($close,20)"),
    ("Mean($close,5,¦N=6)", "Mean($close,20)"),
    ("Mean($close,¦window=6)", "Mean($close,20)"),
    ("¦Mean(*$close)", "Mean($close,20)"),
    ("Log¦(($volume+1)", "as many closing as opening brackets"),
    ("Log($volume)¦)", "as many closing as opening brackets"),
    ("¦$close if $open>1 else 0", "If(condition,left,right)"),
    ("¦1+2", "an expression with a field, like $close"),
    ("$open+¦Rolling($close,5,'mean')", "Mean($close,5)"),
    ("$open+¦TResample($close,'1W','last')", "a window of sessions, like Mean($close,5)"),
    ("$close+¦'1'", "fields, numbers and operators only"),
    ("$close¦; $open", "fields, numbers and operators only"),
    ("$close ¦# today", "fields, numbers and operators only"),
]  # fmt: skip


@pytest.mark.parametrize("op", sorted(WINDOWS))
@pytest.mark.parametrize("n", [-200_000, -200.5, -3, -1.5, -0.5, 0, 0.0, 0.5, 1, 1.5, 2, 3, 99_999.5, 100_001, 1e300])
def test_what_is_to_be_written_instead_of_a_window_is_not_refused_itself(op: str, n: float) -> None:
    args = tuple(parse("$close") for p in OPERATORS[op] if p.startswith("feature"))
    share = (0.8,) if op == "Quantile" else ()
    if (found := refusal(op, args, (n, *share))) and found.instead[0] != "0":
        assert parse(found.instead).op == op
    elif found:
        assert refusal(op, args, (0, *share)) is None


@pytest.mark.parametrize(("marked", "suggestion"), PLACES)
def test_a_refusal_points_at_the_part_and_says_what_to_write(marked: str, suggestion: str) -> None:
    text, column = marked.replace("¦", ""), marked.index("¦")
    error = refused(text)
    assert (error.position, error.suggestion, error.text) == (column + 1, suggestion, text)
    first, shown, caret = str(error).split("\n")
    assert f"in column {error.position} of" in first
    assert suggestion in first
    assert (shown + " ")[caret.index("^")] == (text + " ")[column]


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_machinery_of_qlib_s_that_is_no_operator_is_refused_by_its_name(name: str) -> None:
    error = refused(f"{name}($close,5)")
    assert str(error).startswith(name)
    assert error.position == 1


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_nothing_written_is_refused(text: str) -> None:
    assert "empty" in str(refused(text))


@pytest.mark.parametrize("text", ["$close+", "$close>", "Mean($close,5)/ "])
def test_an_expression_that_breaks_off_is_refused_at_its_end(text: str) -> None:
    assert refused(text).position == len(text.rstrip()) + 1


def test_an_error_reads_well_in_one_line_and_is_a_wrong_input() -> None:
    error = refused("Meen($close,5)/$close")
    assert isinstance(error, InputError)
    assert one_line(error) == "unknown operator Meen, in column 1 of 'Meen($close,5)/$close': did you mean Mean?"


def test_a_place_far_inside_a_long_expression_is_shown_with_its_surroundings() -> None:
    text = "+".join(f"Mean($close,{n})" for n in range(1, 60)) + "+Meen($open,5)+$low"
    _, shown, caret = str(refused(text)).split("\n")
    assert len(shown) < 90
    assert shown[caret.index("^") :].startswith("Meen")


@pytest.mark.parametrize("text", ["{}($close,5)", "Mean(${},5)", "{}", "Mean($close,{}=5)", "$close${}", "$close*9{}"])
def test_a_very_long_name_makes_no_very_long_first_line(text: str) -> None:
    assert len(one_line(refused(text.format("9x" * 2000 if "9{" in text else "x" * 4000)), limit=10_000)) < 400


def test_columns_are_right_behind_letters_beyond_ascii() -> None:
    assert refused("$é+Meen($close,5)", fields=None).position == 4
    assert refused("Méan($close,5)+$open").suggestion == "Mean"
    assert refused("é+Meen($close,5)").position == 1


@pytest.mark.parametrize(
    "text", ["(" * 400 + "$close" + ")" * 400, "$close" + "+1" * 3000, "-" * 3000 + "1", "Abs(" * 160 + "$close" + ")" * 160,
             "(" * 5000, "$close+1" + "**2" * 500, "Abs(" * 2000],
)  # fmt: skip
def test_bottomless_nesting_is_refused_in_words(text: str) -> None:
    assert refused(text).suggestion


def test_as_deep_as_promised_is_read() -> None:
    node = parse("$close" + "+$open" * (MAX_DEPTH - 1))
    assert node.dtype == "f4"
    assert parse("Abs(" * (MAX_DEPTH - 1) + "$close" + ")" * (MAX_DEPTH - 1)).dtype == "f4"


def test_a_text_longer_than_any_expression_is_refused() -> None:
    assert str(MAX_LENGTH) in str(refused("$close" * MAX_LENGTH))


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "().__class__", "[x for x in $close]", "lambda: 1", "(x:=1)", "f'{1}'", "{1}", "$close[0]", "open", "exec", "`1`"])  # fmt: skip
def test_nothing_but_expressions_is_read_let_alone_executed(text: str) -> None:
    assert refused(text)


PIECES = [*OPERATORS, *["$close", "$open>1", "Mean($close,", "If(", "+", "-", "*", "(", ")", ",", "2", ")"] * 8, "$close", "$open", "$", "(", ")", ",", "+", "-", "*", "/", "**", ">", "<", "==", "!=", "&", "|", "~", "not ", " and ", "5", "0", "-1", "1e-12", ".5", "9" * 30,
          " ", "\n", "N=", "*", "$$x", "é", "：", "'", "%", "//", "=", "if", "1e400", "True", "lambda", ".", "²", "\x00"]  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
@settings(max_examples=1500)
@example("1and 2")
@example("$close(（")
@example("\ud800")
@example("9" * 5000)
@example("Mean($close,1e5)")
@example("0or$close")
@example("1_000*$close")
@example("..5or $close")
@example("（5or $close")
def test_garbage_is_refused_and_never_an_accident(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = outcome(text)
    if isinstance(got, Node):
        assert parse(str(got)) == got
        assert str(expression(" ".join(text.split()))) == str(got)  # nothing is read that pyqlib reads otherwise
    else:
        assert 1 <= got.position <= len(text) + 1
        assert got.suggestion
        assert str(got).count("\n") == 2
