"""The engine given what nobody should give it: it answers as it always does, alike on both paths, or says what is wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tradenb.core.errors import ConfigError, DataError, InputError
from tradenb.features import compiled
from tradenb.features.engine import State, compute
from tradenb.features.panel import Panel, random_panel
from tradenb.features.program import program
from tradenb.features.sets import FeatureSet, feature_set

ENGINES = ("numpy", "numba")
PANEL = random_panel(7, 100, seed=1, suspended=0.05)
ODD = FeatureSet.of(
    "odd",
    {"field": "$close", "same": "$close", "log": "Log($volume)", "power": "$close**0.5", "ahead": "Ref($close,-2)", "one": "Mean($close,1)",
     "long": "Mean($close,5000)", "middle": "Med($close,5000)", "low": "Quantile($open,5000,0.3)", "rank": "Rank($close,5000)",
     "far": "Ref($close,5000)", "farther": "Ref($close,-5000)", "away": "Mad($close,500)", "all": "EMA($close,0)", "ema": "EMA($close,5)",
     "best": "IdxMax($high,0)", "half": "Med($vwap,0)", "first": "Ref($close,0)", "level": "Rank($low,0)", "logs": "Log(Mean($close,3))", "powers": "Power(Mean($close,3),0.3)",
        "series": "Power($close/100,$low/50)", "deep": "Log(Log(Abs($close-Ref($close,1))+2)**1.5)"},
)  # fmt: skip
SETS = (feature_set("alpha158"), feature_set("alpha360"), ODD)


def fields(change: Callable[[np.ndarray], np.ndarray], panel: Panel = PANEL) -> Panel:
    "The panel with every field changed."
    return replace(panel, fields={f: change(x) for f, x in panel.fields.items()})


def part(symbols: slice, sessions: slice, panel: Panel = PANEL) -> Panel:
    return Panel(panel.symbols[symbols], panel.dates[sessions], {f: x[symbols, sessions] for f, x in panel.fields.items()},
                 panel.listed[symbols, sessions])  # fmt: skip


def strange(*numbers: float) -> Panel:
    "One number in twenty is one of these."
    rng, odd = np.random.default_rng(4), np.array(numbers, np.float32)
    return fields(lambda x: np.where((rng.random(x.shape) < 0.05) & PANEL.listed, rng.choice(odd, x.shape), x))


PANELS = {
    "no symbol": part(slice(0, 0), slice(None)),
    "no session": part(slice(None), slice(0, 0)),
    "nothing": part(slice(0, 0), slice(0, 0)),
    "one symbol": part(slice(0, 1), slice(None)),
    "one session": part(slice(None), slice(5, 6)),
    "one bar": part(slice(0, 1), slice(0, 1)),
    "ten sessions": part(slice(None), slice(0, 10)),
    "nothing listed": replace(fields(lambda x: np.full_like(x, np.nan)), listed=np.zeros_like(PANEL.listed)),
    "listed, no bar": replace(fields(lambda x: np.full_like(x, np.nan)), listed=np.ones_like(PANEL.listed)),
    "infinities": strange(np.inf, -np.inf),
    "zeros": strange(0.0, -0.0),
    "all zero": fields(lambda x: x * np.float32(0)),
    "denormals": strange(1e-45, -1e-40, 1e-38),
    "huge": strange(3e38, -3e38, 1e30),
    "all denormal": fields(lambda x: (x * 1e-44).astype("f4")),
    "constant": fields(lambda x: np.where(np.isnan(x), x, np.float32(0.1))),
    "Fortran order": replace(fields(np.asfortranarray), listed=np.asfortranarray(PANEL.listed)),
    "every third number of more": fields(lambda x: np.repeat(x, 3, axis=1)[:, ::3]),
    "backwards in memory": fields(lambda x: x[::-1, ::-1].copy()[::-1, ::-1]),
    "only to be read": fields(lambda x: np.lib.stride_tricks.as_strided(x, writeable=False)),
    "NaN of another kind": fields(lambda x: np.where(np.isnan(x), np.array(0xFFC00001, "u4").view("f4"), x)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fset", SETS, ids=lambda fset: fset.name)
@pytest.mark.parametrize("kind", PANELS)
def test_any_bars_give_the_same_bytes_on_both_paths_and_no_warning(fset: FeatureSet, kind: str) -> None:
    panel = PANELS[kind]
    one, other = (compute(panel, fset, engine=engine) for engine in ENGINES)
    assert one.values.shape == (len(fset.names), *panel.shape)
    assert [n for n, a, b in zip(fset.names, one.values, other.values, strict=True) if a.tobytes() != b.tobytes()] == []


@pytest.mark.parametrize(
    "kind", ["Fortran order", "every third number of more", "backwards in memory", "only to be read"]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_how_numbers_lie_in_memory_changes_no_byte(kind: str, engine: str) -> None:
    for fset in SETS:
        assert compute(PANELS[kind], fset, engine=engine).values.tobytes() == compute(PANEL, fset).values.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_missing_value_is_the_same_nan(engine: str) -> None:
    values = compute(PANELS["NaN of another kind"], ODD, engine=engine).values
    assert set(values[np.isnan(values)].view("u4").tolist()) == {0x7FC00000}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_window_longer_than_the_panel_is_all_of_it(engine: str) -> None:
    block = compute(PANELS["ten sessions"], ODD, engine=engine)
    expanding = compute(
        PANELS["ten sessions"],
        FeatureSet.of("all", {"long": "Mean($close,0)", "rank": "Rank($close,0)"}),
        engine=engine,
    )
    for name in ("long", "rank"):
        np.testing.assert_array_equal(block.feature(name), expanding.feature(name))
    assert np.isnan(block.feature("far")).all() and np.isnan(block.feature("farther")).all()
    assert (
        block.feature("field").tobytes()
        == block.feature("same").tobytes()
        == PANELS["ten sessions"].fields["close"].tobytes()
    )


def test_a_start_outside_the_panel_gives_everything_or_nothing() -> None:
    for engine in ENGINES:
        assert compute(PANEL, ODD, PANEL.dates[0] - 99, engine=engine).dates[0] == PANEL.dates[0]
        assert compute(PANEL, ODD, PANEL.dates[-1] + 1, engine=engine).values.shape == (len(ODD.names), 7, 0)


REFUSED = {
    "close of the panel is float64": replace(
        PANEL, fields=PANEL.fields | {"close": PANEL.fields["close"].astype("f8")}
    ),
    "open of the panel is int64": fields(lambda x: np.nan_to_num(x).astype("i8")),
    "open of the panel is >f4": fields(lambda x: x.astype(">f4")),
    r"low of the panel is float32 \(7, 99\)": replace(PANEL, fields=PANEL.fields | {"low": PANEL.fields["low"][:, 1:]}),
    "has no field vwap": replace(PANEL, fields={f: x for f, x in PANEL.fields.items() if f != "vwap"}),
    "listed of the panel is int64": replace(PANEL, listed=PANEL.listed.astype("i8")),
    "S0004 has close before its listing": replace(
        PANEL, listed=PANEL.listed & ((np.arange(7) != 4)[:, None] | (np.arange(100) > 50))
    ),
    "the listing of S0002 ends": replace(
        PANEL, listed=PANEL.listed & ~((np.arange(7) == 2)[:, None] & (np.arange(100) > 90))
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_panel_is_refused(why: str, engine: str) -> None:
    with pytest.raises(InputError, match=why):
        compute(REFUSED[why], SETS[0], engine=engine)


def test_threads_and_engines_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="-1 threads"):
        compute(PANEL, ODD, threads=-1)
    with pytest.raises(ConfigError, match=r"features\.engine is fast, expected one of auto, numpy, numba"):
        compute(PANEL, ODD, engine="fast")
    for threads in (0, 1, 1000):
        assert compute(PANEL, ODD, threads=threads).values.tobytes() == compute(PANEL, ODD).values.tobytes()


def test_the_deepest_expression_is_planned_from_deep_inside_a_program() -> None:
    text = "$close"
    for _ in range(149):
        text = f"Abs({text})"
    fset = FeatureSet.of("deep", {"x": text})

    def below(frames: int) -> bytes:
        return below(frames - 1) if frames else compute(PANEL, fset).values.tobytes()

    assert fset.graph.halo == 0
    assert below(sys.getrecursionlimit() // 2) == PANEL.fields["close"].tobytes()


def test_a_set_of_two_thousand_features_is_two_thousand_features() -> None:
    rng, operators = (
        np.random.default_rng(2),
        ("Mean", "Std", "Max", "Rank", "Slope", "WMA", "EMA", "IdxMax", "Kurt", "Med"),
    )
    texts = [f"{rng.choice(operators)}($close/Ref($open,{i % 9 + 1}),{i // 9 + 4})" for i in range(2_000)]
    huge = FeatureSet.of("huge", {f"f{i}": text for i, text in enumerate(texts)})
    panel = part(slice(0, 2), slice(0, 60))
    values = compute(panel, huge, engine="numba").values
    for i in rng.integers(0, 2_000, 10):
        alone = compute(panel, FeatureSet.of("one", {"x": texts[i]}), engine="numpy").values[0]
        assert values[i].tobytes() == alone.tobytes(), texts[i]


def test_threads_that_compute_different_sets_at_once_do_not_meet() -> None:
    jobs = [(fset, engine) for fset in SETS for engine in ENGINES] * 3
    expected = {fset.name: compute(PANEL, fset).values.tobytes() for fset in SETS}
    program.cache_clear()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: compute(PANEL, job[0], engine=job[1]).values.tobytes(), jobs))
    assert all(values == expected[fset.name] for (fset, _), values in zip(jobs, found, strict=True))


# States


RECURSIVE = FeatureSet.of("recursive", {"slow": "EMA($close,12)", "high": "Max($high,0)"})


def test_a_state_belongs_to_its_bars_its_set_and_its_session() -> None:
    state = compute(PANEL.sessions_between(0, 90), RECURSIVE).state
    assert state is not None
    mirrored = replace(PANEL, fields=dict(reversed(PANEL.fields.items())))
    assert (
        compute(mirrored, RECURSIVE, state=state).values.tobytes()
        == compute(PANEL, RECURSIVE, state=state).values.tobytes()
    )
    other = FeatureSet.of("recursive", {"slow": "EMA($close,13)", "high": "Max($high,0)"})
    with pytest.raises(InputError, match="another feature set's"):
        compute(PANEL, other, state=state)
    with pytest.raises(InputError, match="lacks 2018-05-07"):
        compute(PANEL.tail(5), RECURSIVE, state=state)
    with pytest.raises(InputError, match="their past was restated"):
        compute(fields(lambda x: x * np.float32(2)), RECURSIVE, state=state)


def test_a_newcomer_starts_afresh_beside_states_of_others() -> None:
    late = replace(PANEL, listed=PANEL.listed & ((np.arange(7) != 3)[:, None] | (np.arange(100) >= 95)))
    late = replace(late, fields={f: np.where(late.listed, x, np.float32("nan")) for f, x in late.fields.items()})
    few = late.select([s for s in late.symbols if s != "S0003"])
    state = compute(few.sessions_between(0, 95), RECURSIVE).state
    whole = compute(late, RECURSIVE).values
    assert compute(late, RECURSIVE, state=state).values.tobytes() == np.ascontiguousarray(whole[:, :, 95:]).tobytes()


def test_nobody_goes_on_from_a_recursion_that_has_looked_ahead() -> None:
    label = FeatureSet.of("label", {"x": "EMA(Ref($close,-1),5)"})
    assert compute(PANEL, label).state is None
    state = replace(compute(PANEL, RECURSIVE).state, set_hash=label.hash)
    with pytest.raises(InputError, match="or a recursion looks ahead"):
        compute(PANEL, label, state=state)
    back = FeatureSet.of("back", {"x": "EMA(Ref(Ref($close,-1),1),5)"})
    assert compute(PANEL, back).state is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "a bit", "another file", "text"])
def test_a_damaged_state_is_not_read(damage: str, tmp_path: Path) -> None:
    file, state = tmp_path / "evening", compute(PANEL, RECURSIVE).state
    assert state is not None
    state.save(file)
    whole = file.read_bytes()
    assert State.load(file).values.tobytes() == state.values.tobytes()
    if damage == "another file":
        with file.open("wb") as to:
            np.savez(to, x=np.zeros(3))
    else:
        at = whole.index(state.values.tobytes()) + 5
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "a bit": flipped, "text": b"no state"}[damage])
    with pytest.raises(DataError, match="holds no state"):
        State.load(file)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["evening"]


# The kernels' folder


def test_kernels_that_are_removed_or_damaged_while_they_run_go_on_and_the_next_process_notices(tmp_path: Path) -> None:
    "In a process of its own, with a copy of the machine code."
    built = next(home / compiled.key(compiled.ingredients(compiled.SOURCE)) for home in compiled.homes()
                 if (home / compiled.key(compiled.ingredients(compiled.SOURCE)) / compiled.READY).exists())  # fmt: skip
    home = tmp_path / "tradenb" / "kernels"
    shutil.copytree(built, home / built.name)
    code = f"""
import json, shutil
from pathlib import Path
from tradenb.features import compiled
home = Path({str(home)!r})
compiled.homes = lambda: [home]
from tradenb.features.engine import compute
from tradenb.features.panel import random_panel
from tradenb.features.sets import feature_set
panel, fset = random_panel(5, 80, 1), feature_set("alpha158")
before = compute(panel, fset, engine="numba").values.tobytes()
for file in (home / {built.name!r} / "__pycache__").iterdir():
    file.write_bytes(b"rubbish")
during = compute(panel, fset, engine="numba").values.tobytes()
why = compiled.look(compiled.SOURCE, [home])[1]
shutil.rmtree(home)
after = compute(panel, fset, engine="numba").values.tobytes()
print(json.dumps([before == during == after, why, before == compute(panel, fset, engine="numpy").values.tobytes()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same, why, as_numpy = json.loads(done.stdout.splitlines()[-1])
    assert same and as_numpy
    assert why.endswith("is damaged")
