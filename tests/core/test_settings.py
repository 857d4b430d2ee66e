"Settings refuse what cannot be, in one line that says what would be right."

import subprocess
import sys
from pathlib import Path

import pytest

from tradenb.core.errors import ConfigError
from tradenb.core.settings import find_file, load


def test_the_command_line_beats_the_environment_which_beats_the_file() -> None:
    env = {"TRADENB_PORTFOLIO__TOP_N": "11", "TRADENB_PORTFOLIO__BOTTOM_N": "12"}
    portfolio = load({"portfolio.top_n": 13}, env=env).portfolio
    assert (portfolio.top_n, portfolio.bottom_n, portfolio.fractional) == (13, 12, False)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("portfolio.capital", "-1", "greater than 0"),
        ("portfolio.capital", "NaN", "finite"),
        ("quality.max_bad_share", "1.5", "less than or equal to 1"),
        ("market.source", "bloomberg", "'demo', 'files' or 'alpaca'"),
        ("demo.start", "yesterday", "date"),
        ("training.threads", "many", "integer"),
        ("services.exchange_port", "70000", "65535"),
        ("features.engine", "cython", "'auto', 'numpy' or 'numba'"),
        ("execution.dry_run", "maybe", "'auto', or input should be a valid boolean"),
        ("features.scheduler", "host:8786", "pattern"),
        ("files.columns", "symbol", "field=column"),
        ("features.set", "alpha159", "expected alpha158, alpha360, or the path of a .toml file"),
        ("portfolio.kapital", "5", "did you mean capital"),
        ("portfolo.capital", "5", "did you mean portfolio"),
        ("capital", "5", "section.key"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: value}, env={})
    assert name in str(caught.value) or "." not in name or "unknown" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "deeper/data"])
def test_a_root_that_is_a_file_or_below_one_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "letter").write_text("dear reader")
    with pytest.raises(ConfigError, match=r"core\.root=.*letter is a file; name a folder"):
        load({"core.root": tmp_path / "letter" / below}, env={})


def test_a_dot_env_file_is_read_and_the_real_environment_beats_it(tmp_path: Path) -> None:
    project = Path(__file__).resolve().parents[2]
    (tmp_path / "settings.ini").write_text((project / "settings.ini").read_text())
    (tmp_path / ".env").write_text("TRADENB_PORTFOLIO__TOP_N=3\nTRADENB_PORTFOLIO__BOTTOM_N=4\n")
    code = "from tradenb.core.settings import load; import pathlib; p = load(file=pathlib.Path('settings.ini')).portfolio; print(p.top_n, p.bottom_n)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"TRADENB_PORTFOLIO__TOP_N": "9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["9", "4"]


def test_a_feature_set_is_qlibs_own_or_a_file_beside_the_settings() -> None:
    for name in ("alpha158", "alpha360"):
        assert load({"features.set": name}, env={}).features.set == name
    beside = find_file().resolve().parent / "sets" / "mine.toml"
    assert load({"features.set": "sets/mine.toml"}, env={}).features.set == str(beside)


def test_a_set_of_ones_own_is_known_by_what_its_file_says_not_by_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = tmp_path / "mine.toml", tmp_path / "elsewhere" / "other.toml"
    for path in (here, there):
        path.write_text("[features]\nA = '$close'\n")
    hashes = [load({"features.set": str(path)}, env={}).hash for path in (here, there)]
    assert hashes[0] == hashes[1]
    here.write_text("[features]\nA = '$open'\n")
    assert load({"features.set": str(here)}, env={}).hash != hashes[0]


def test_what_computes_features_changes_no_hash_for_it_changes_no_value() -> None:
    hashes = {load({"features.engine": engine}, env={}).hash for engine in ("auto", "numpy", "numba")}
    assert hashes == {load({"features.scheduler": "tcp://127.0.0.1:8786"}, env={}).hash}
