"""Feature sets: pyqlib's own strings, one hash per computation, and every slip named with its place."""

import dataclasses
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradenb.core.errors import ConfigError, ExpressionError, InputError
from tradenb.features import sets
from tradenb.features.graph import graph
from tradenb.features.sets import FeatureSet, alpha158, alpha360, feature_set, from_json, reaching_ahead, to_json

GAP = {"GAP": "$open/Ref($close,1)-1"}


def qlib_config(loader: str, *config: dict) -> dict[str, str]:
    "Feature → expression as pyqlib composes them."
    from qlib.contrib.data import loader as qlib

    expressions, names = getattr(qlib, loader).get_feature_config(*config)
    assert len(set(names)) == len(names)
    return dict(zip(names, expressions, strict=True))


def test_the_built_in_sets_are_pyqlibs_name_for_name_and_letter_for_letter() -> None:
    assert list(feature_set("alpha158").items) == list(qlib_config("Alpha158DL").items())
    assert list(feature_set("alpha360").items) == list(qlib_config("Alpha360DL").items())
    assert (len(alpha158().names), len(alpha360().names)) == (158, 360)


FAMILIES = st.sampled_from(sorted(sets.SWITCH.get(f, f) for f in sets.ROLLING))
BACK = st.lists(st.integers(0, 9), unique=True, max_size=4)


@given(
    candle=st.booleans(),
    price_windows=BACK,
    prices=st.lists(st.sampled_from(["OPEN", "HIGH", "LOW", "CLOSE", "VWAP"]), unique=True),
    volume_windows=BACK,
    windows=st.lists(st.integers(2, 90), unique=True, min_size=1, max_size=3),
    include=st.none() | st.lists(FAMILIES, min_size=1),
    exclude=st.lists(FAMILIES, max_size=9),
)
def test_any_other_configuration_of_alpha158_is_pyqlibs_too(
    candle, price_windows, prices, volume_windows, windows, include, exclude
) -> None:
    config = {
        "price": {"windows": price_windows, "feature": prices},
        "volume": {"windows": volume_windows},
        "rolling": {"windows": windows, "include": include, "exclude": exclude},
    } | ({"kbar": {}} if candle else {})
    expected = qlib_config("Alpha158DL", config)
    ask = lambda: alpha158(candle, price_windows, prices, volume_windows, windows, include, exclude)
    if expected:
        assert list(ask().items) == list(expected.items())
    else:
        with pytest.raises(InputError, match="alpha158 has no feature"):
            ask()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$open / Ref( $close , 1 ) - 1", "Sub(Div($open,Ref($close,1)),1)"),
        ("($close>Ref($close,1))", "Gt($close, Ref($close, 1))"),
        ("2*$close", "Mul($close,2)"),
        ("Mean($close, N=5)", "Mean($close, 5)"),
        ("Ref(Ref($close, 1), 2)", "Ref($close, 3)"),
    ],
)
def test_two_spellings_of_one_expression_have_one_hash(one: str, other: str) -> None:
    assert FeatureSet.of("a", {"X": one}).hash == FeatureSet.of("a", {"X": other}).hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mean($close,5)", "Mean($close,6)"),
        ("$close/$open", "$open/$close"),
        ("$open+$close", "$close+$open"),
        ("$close-1", "$close-1.0"),
        ("Quantile($close,5,0.8)", "Quantile($close,5,0.2)"),
        ("Ref($close,1)", "Ref($close,2)"),
    ],
)
def test_two_computations_have_two_hashes(one: str, other: str) -> None:
    assert FeatureSet.of("a", {"X": one}).hash != FeatureSet.of("a", {"X": other}).hash


def test_the_hash_is_that_of_the_features_in_their_order_and_not_of_their_sets_name(monkeypatch) -> None:
    fset = FeatureSet.of("trend", GAP | {"MOM": "$close/Ref($close,20)-1"})
    assert FeatureSet.of("renamed", fset.expressions).hash == fset.hash
    reversed_ = FeatureSet.of("trend", dict(reversed(fset.items)))
    other_name = FeatureSet.of("trend", GAP | {"MOM20": "$close/Ref($close,20)-1"})
    assert len({fset.hash, reversed_.hash, other_name.hash, FeatureSet.of("trend", GAP).hash}) == 4
    monkeypatch.setattr(sets, "SEMANTICS", "other bits")
    assert FeatureSet.of("trend", fset.expressions).hash != fset.hash


def test_the_hashes_of_the_built_in_sets_change_only_when_somebody_means_it() -> None:
    assert feature_set("alpha158").hash == "61c29c322a4e12397387759e9ed16b078524d2ceb16dcf95da70d8fe6522c3ac"
    assert feature_set("alpha360").hash == "b7f61b6ec23526afa103dbbfb806d45387a82b26d07f7a83a5f6ed4f78804452"


def test_a_set_is_a_value() -> None:
    fset = FeatureSet.of("trend", GAP)
    assert fset == FeatureSet.of("trend", dict(GAP)) and hash(fset) == hash(FeatureSet.of("trend", GAP))
    assert fset != FeatureSet.of("other", GAP)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fset.name = "other"  # type: ignore[misc]
    fset.expressions["GAP"] = "$close"
    assert fset.expressions == GAP
    assert pickle.loads(pickle.dumps(fset)).hash == fset.hash
    assert feature_set("alpha158") is feature_set("alpha158")


@pytest.mark.parametrize(
    ("expressions", "halo", "ahead"),
    [
        ({"A": "$close"}, 0, 0),
        ({"A": "Mean($close,5)", "B": "Ref($open,7)"}, 7, 0),
        ({"A": "Ref($close,-2)/Ref($close,-1)-1"}, 0, 2),
        ({"A": "EMA($close,5)", "B": "Mean($close,9)"}, None, 0),
    ],
)
def test_halo_and_ahead_are_those_of_the_widest_feature(expressions: dict[str, str], halo: int, ahead: int) -> None:
    fset = FeatureSet.of("a", expressions)
    assert (fset.halo, fset.ahead) == (halo, ahead)
    assert fset.warmup == (sets.WARMUP if halo is None else halo)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Ref($close,-1)", ("Ref($close,-1)",)),
        ("Ref(Ref($close,-1),1)", ()),
        ("Ref(Ref($close,-3),1)", ("Ref($close,-3)",)),
        ("Ref(Ref($close,-1),1)+Ref($open,-2)", ("Ref($open,-2)",)),
        ("Ref(Mean(Ref($close,-1)+Ref($open,-2),3),1)", ("Ref($open,-2)",)),
        ("Corr(Ref($close,-1),Delta($volume,-5),20)", ("Ref($close,-1)", "Delta($volume,-5)")),
        ("Ref($close,-1)/Ref($close,-1)", ("Ref($close,-1)",)),
        ("If(Ref($close,-1)>$close,1,0)", ("Ref($close,-1)",)),
        ("Mean($close,20)", ()),
        ("EMA(Ref($close,-1),5)", ("Ref($close,-1)",)),
    ],
)
def test_the_part_that_looks_ahead_is_named(text: str, parts: tuple[str, ...]) -> None:
    g = graph({"X": text, "OTHER": "Ref($low,-9)"})
    assert reaching_ahead(g, "X") == parts
    assert bool(parts) == (g.spans[g.root("X")][1] > 0)


def test_a_set_that_looks_ahead_is_refused_where_the_past_is_asked_for() -> None:
    fset = FeatureSet.of("oracle", GAP | {"NEXT": "Ref($close,-1)/$close - 1"})
    with pytest.raises(ExpressionError, match=r"feature set oracle, feature NEXT: Ref\(\$close,-1\) in") as caught:
        fset.require_causal()
    assert (caught.value.text, caught.value.position) == ("Ref($close,-1)/$close - 1", 1)
    assert FeatureSet.of("trend", GAP).require_causal().name == "trend"
    for name in sets.BUILT_IN:
        feature_set(name).require_causal()


@pytest.mark.parametrize("name", ["", "2X", "A B", "A{", 'A"', "A,B", "Ü", "A[1]", 7])
def test_a_name_that_a_model_could_not_carry_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="cannot name a feature"):
        FeatureSet.of("trend", {name: "$close"})  # type: ignore[dict-item]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_defines_a_set(tmp_path: Path) -> None:
    write(tmp_path, '[features]\nGAP = "$open/Ref($close,1)-1"\n"VWAP.D" = "$vwap/$close"\n')
    fset = feature_set("mine.toml", tmp_path)
    assert (fset.name, fset.names) == ("mine", ("GAP", "VWAP.D"))
    assert feature_set(str(tmp_path / "mine.toml")) == fset
    write(tmp_path, 'name = "trend"\nbase = "alpha360"\n[features]\nGAP = "$open/Ref($close,1)-1"\n')
    wide = feature_set("mine.toml", tmp_path)
    assert (wide.name, wide.names) == ("trend", (*feature_set("alpha360").names, "GAP"))


def test_an_edited_file_is_another_set_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[features]\nGAP = "$open/Ref($close,1)-1"\n')
    before = feature_set(str(path)).hash
    write(tmp_path, '[features]\nGAP = "$open/Ref($close,2)-1"\n')
    assert feature_set(str(path)).hash != before


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('[features]\nA = "Meann($close,5)"', ExpressionError, "feature A: unknown operator Meann.*did you mean Mean"),
        ('[features]\nA = "$close"\nB = "$clos"', ExpressionError, "feature B: unknown field"),
        ('[features]\nA = "Ref($close,-1)"', ExpressionError, r"feature A: Ref\(\$close,-1\) .* later session"),
        ("[features]\nA = 5", ConfigError, "feature A is 5, expected an expression in quotes"),
        ("[features.A]\nB = 5", ConfigError, "feature A is .* expected an expression in quotes"),
        ("[features]", InputError, "has no feature"),
        ("", InputError, "has no feature"),
        ("features = 7", ConfigError, "features = 7 is no table"),
        ('name = 7\n[features]\nA = "$close"', ConfigError, "name = 7 is no text"),
        ('base = "alpha159"\n[features]\nA = "$close"', ConfigError, "base = 'alpha159' is no set"),
        ('base = ["alpha158"]', ConfigError, "is no set"),
        ('base = "alpha158"\n[features]\nMA5 = "$close"', ConfigError, "feature MA5 is one of alpha158 already"),
        ('A = "$close"', ConfigError, r"unknown key 'A', expected name, base, features"),
        ('[features]\nA = "$close"\nA = "$open"', ConfigError, "is no TOML file: Cannot overwrite a value"),
        ('[features]\n"A B" = "$close"', InputError, "'A B' cannot name a feature"),
        ("[features", ConfigError, "is no TOML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_the_file_and_the_feature(tmp_path, text, error, message) -> None:
    with pytest.raises(error, match=f"mine.toml.*{message}"):
        feature_set(str(write(tmp_path, text)))


def test_a_set_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no feature set 'alpha1', expected one of alpha158, alpha360 or the path"):
        feature_set("alpha1")
    with pytest.raises(ConfigError, match=r"no feature set at .*gone.toml \(No such file or directory\)"):
        feature_set("gone.toml", tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"[features]\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.toml is no TOML file"):
        feature_set("latin.toml", tmp_path)


def test_a_definition_comes_back_from_text() -> None:
    for fset in (feature_set("alpha158"), FeatureSet.of("alpha158", GAP), FeatureSet.of("trend", GAP)):
        again = from_json(to_json(fset))
        assert again == fset and again.hash == fset.hash
    for text in ("", "[]", "{}", '{"name": "a", "expressions": 5}'):
        with pytest.raises(InputError, match="no feature set in this text"):
            from_json(text)


def test_a_set_is_shown_as_a_table() -> None:
    shown = sets.markdown(feature_set("alpha158"))
    assert "… 147 more" in shown and "| KMID | `($close-$open)/$open` | 1 |" in shown and "| VSUMD60 |" in shown
    rows = sets.table(FeatureSet.of("a", GAP | {"E": "EMA($close,5)"}))
    assert rows["sessions"].to_list() == [2, None]
