"What the benchmarks compare computes the same thing, and what times them tells the truth."

from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmarks import _kunquant
from pipelines.benchmarks._measure import Contender, in_turns, peak_gib, timed
from pipelines.benchmarks._polars158 import alpha158, bars_of
from pipelines.benchmarks.features import MAKE, MEANING
from tradenb.features.engine import compute
from tradenb.features.oracle import adversarial_panel, disagreement
from tradenb.features.panel import Panel, random_panel
from tradenb.features.sets import feature_set


@pytest.mark.parametrize(
    ("panel", "border"),
    [(random_panel(40, 300, seed=3), 0), (adversarial_panel(), 2)],
    ids=["random", "adversarial"],
)
def test_plain_polars_says_what_ours_says(panel: Panel, border: int) -> None:
    "Where a deviation is as large as Qlib's limit of flatness, one of the two may call it flat."
    fset = feature_set("alpha158")
    theirs = alpha158(bars_of(panel)).select(fset.names).fill_null(np.nan).to_numpy().T
    found = disagreement(theirs, compute(panel, fset).values[:, panel.listed])
    assert found["missing"] <= border
    assert found["infinite"] == 0
    assert found["relative"] < 1e-5


def test_every_contender_is_explained() -> None:
    assert MAKE.keys() == MEANING.keys()


def test_cores_are_counted_apart_from_the_clock() -> None:
    wall, cores = timed(lambda: sum(range(1_000_000)))
    assert 0 < cores < wall + 0.1


def test_a_contender_that_dies_says_why() -> None:
    with pytest.raises(ChildProcessError, match="KeyError: 'nobody'"):
        Contender("features", ["nobody", "10"], threads=1)


def test_turns_are_timed_in_processes_of_their_own() -> None:
    measured = in_turns("features", {"one": ["floor", "2"], "other": ["floor", "3"]}, rounds=2, threads=1)
    assert [len(one.turns) for one in measured.values()] == [2, 2]
    assert all(0 < one.s < 10 and one.peak_gib > 0.01 for one in measured.values())
    assert peak_gib() > 0.01


def test_kunquant_is_left_out_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "on PATH" in _kunquant.why_not()
