"Notebooks run in this process: parameters are checked, failures keep their notebook, and nothing is left behind."

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

from pipelines.engine import declared_parameters, run_notebook
from tradenb.core.errors import ConfigError, DependencyError, FreshnessError, RunFailed

PARAMETERS = 'trade_date = "2024-01-02"\nsymbols: list[str] | None = None\ncapital = 1_000_000.0'


def write(path: Path, *cells: str, tagged: int = 1) -> Path:
    "A job notebook: a tagged parameters cell, then `cells`."
    book = nbformat.v4.new_notebook()
    for _ in range(tagged):
        book.cells.append(nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def outputs(path: Path) -> list[list[Any]]:
    "The outputs of each code cell that is no parameters cell."
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return [c.outputs for c in cells if not {"parameters", "injected-parameters"} & set(c.metadata.get("tags", []))]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "etl.ipynb"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "2024-01-03" / "etl.ipynb"


def test_given_parameters_replace_the_defaults(book: Path, out: Path) -> None:
    run_notebook(write(book, "trade_date, symbols, capital"), out, {"trade_date": "2024-01-03", "symbols": ["AAPL"]})
    assert outputs(out)[0][0].data["text/plain"] == "('2024-01-03', ['AAPL'], 1000000.0)"


def test_the_executed_notebook_is_valid_and_the_source_is_untouched(book: Path, out: Path) -> None:
    before = write(book, "1 + 1").read_bytes()
    run_notebook(book, out, {"trade_date": "2024-01-03"})
    nbformat.validate(nbformat.read(out, as_version=4))
    assert book.read_bytes() == before


def test_the_stock_kernel_engine_gives_the_same_values(book: Path, out: Path) -> None:
    run_notebook(write(book, "trade_date", "print('read')"), out, {"trade_date": "2024-01-03"}, engine="kernel")
    assert outputs(out)[0][0].data["text/plain"] == "'2024-01-03'"
    assert outputs(out)[1][0].text == "read\n"


def test_declared_parameters_are_the_names_that_the_cell_assigns(book: Path) -> None:
    assert declared_parameters(write(book)) == ["trade_date", "symbols", "capital"]


@pytest.mark.parametrize("tagged", [0, 2])
def test_a_notebook_without_exactly_one_parameters_cell_is_refused(book: Path, out: Path, tagged: int) -> None:
    with pytest.raises(ConfigError, match=f"etl.ipynb has {tagged} cells tagged 'parameters'"):
        run_notebook(write(book, tagged=tagged), out, {})
    assert not out.exists()


def test_an_unknown_parameter_is_refused_with_a_suggestion(book: Path, out: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"knows no parameter trade_day \(did you mean trade_date\?\); it knows trade_"
    ):
        run_notebook(write(book), out, {"trade_day": "2024-01-03"})


@pytest.mark.parametrize("value", [Path("/tmp"), float("nan"), {1, 2}, (1, 2), b"raw", {1: "one"}])
def test_a_value_that_is_not_json_is_refused(book: Path, out: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"etl.ipynb: parameter capital is a .*expected a JSON value"):
        run_notebook(write(book), out, {"capital": value})


def test_a_missing_notebook_is_refused(book: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="there is no notebook"):
        run_notebook(book, out, {})


RAISES_OURS = "from tradenb.core.errors import FreshnessError\nraise FreshnessError('bars end 2024-01-02\\nmore')"


@pytest.mark.parametrize("engine", ["in-process", "kernel"])
def test_our_own_error_keeps_its_class_and_names_notebook_and_cell(book: Path, out: Path, engine: Any) -> None:
    write(book, "done = 'before'; done", RAISES_OURS, "1/0")
    with pytest.raises(FreshnessError, match=r"^etl.ipynb, cell 3: bars end 2024-01-02$"):
        run_notebook(book, out, {"capital": 5.0}, engine=engine)
    ran, failed, after = outputs(out)
    assert ran[0].data["text/plain"] == "'before'"
    assert (failed[0].output_type, failed[0].ename) == ("error", "FreshnessError")
    assert after == []


def test_any_other_error_becomes_a_failed_run_in_one_line(book: Path, out: Path) -> None:
    with pytest.raises(RunFailed, match=r"^etl.ipynb, cell 2: ZeroDivisionError: division by zero$"):
        run_notebook(write(book, "1/0"), out, {})
    assert outputs(out)[0][0].output_type == "error"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("open('/dev/full', 'w').write('x' * 100_000)", "the disk is full"),
        (
            "from sqlalchemy import create_engine\ncreate_engine('sqlite:////').connect()",
            "the database does not answer",
        ),
    ],
    ids=["disk", "database"],
)
def test_what_the_machine_does_to_a_notebook_is_a_dependency(book: Path, out: Path, source: str, words: str) -> None:
    with pytest.raises(DependencyError, match=f"^etl.ipynb, cell 2: {words}"):
        run_notebook(write(book, source), out, {})


def test_a_syntax_error_is_a_failed_run(book: Path, out: Path) -> None:
    with pytest.raises(RunFailed, match="cell 2: SyntaxError"):
        run_notebook(write(book, "x ="), out, {})


def test_a_figure_becomes_an_svg_without_a_date(book: Path, out: Path) -> None:
    run_notebook(write(book, "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);"), out, {})
    svg = outputs(out)[0][-1].data["image/svg+xml"]
    assert "<svg" in svg
    assert "dc:date" not in svg


def test_display_streams_and_results_are_all_kept(book: Path, out: Path) -> None:
    code = "import sys\nfrom IPython.display import HTML, display\nprint('a')\nprint('b', file=sys.stderr)\ndisplay(HTML('<b>c</b>'))\n4"
    run_notebook(write(book, code), out, {})
    stdout, stderr, shown, result = outputs(out)[0]
    assert (stdout.text, stderr.text) == ("a\n", "b\n")
    assert shown.data["text/html"] == "<b>c</b>"
    assert result.data["text/plain"] == "4"


def test_nothing_reaches_the_console(book: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_notebook(
        write(book, "print('inside')", "import sys\nprint('inside too', file=sys.stderr)"), out, {"capital": 5.0}
    )
    assert capfd.readouterr() == ("", "")


def test_another_thread_still_reaches_the_console(book: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import threading\nt = threading.Thread(target=lambda: print('progress'))\nt.start(); t.join(); print('inside')"
    )
    run_notebook(write(book, code), out, {})
    assert capsys.readouterr().out == "progress\n"
    assert outputs(out)[0][0].text == "inside\n"


def test_nothing_leaks_from_one_notebook_into_the_next_or_into_the_process(book: Path, out: Path) -> None:
    import matplotlib
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib import pyplot

    before = sys.modules["__main__"], InteractiveShell._instance, sys.displayhook, matplotlib.get_backend()
    threads, size = threading.active_count(), list(matplotlib.rcParams["figure.figsize"])
    leaky = "leaked = 1\nimport matplotlib.pyplot as plt\nplt.rcParams['figure.figsize'] = (1, 1)\nplt.ioff(); plt.figure();"
    run_notebook(write(book, leaky), out, {})
    run_notebook(write(book, "'leaked' in globals()"), out, {})
    assert outputs(out)[0][0].data["text/plain"] == "False"
    assert (sys.modules["__main__"], InteractiveShell._instance, sys.displayhook, matplotlib.get_backend()) == before
    assert (threading.active_count(), list(matplotlib.rcParams["figure.figsize"])) == (threads, size)
    assert pyplot.get_fignums() == []


def test_braces_in_a_folder_name_are_not_a_template(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs {odd}" / "etl.ipynb"
    run_notebook(write(book, "1"), out, {})
    assert out.is_file()


def test_no_draft_is_left_beside_the_notebook(book: Path, out: Path) -> None:
    run_notebook(write(book, "1"), out, {})
    assert [p.name for p in out.parent.iterdir()] == ["etl.ipynb"]


def start(book: Path, out: Path) -> subprocess.Popen[str]:
    "Run the notebook in a process of its own, and wait until its second cell works."
    code = f"from pathlib import Path\nfrom pipelines.engine import run_notebook\nrun_notebook(Path({str(book)!r}), Path({str(out)!r}), {{}})"
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=root)
    deadline = time.monotonic() + 60
    while not (out.parent / "working").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


SLOW = "import time\nfrom pathlib import Path\n(Path({folder!r}) / 'working').touch()\ntime.sleep(60)"


def test_a_kill_in_the_middle_leaves_a_readable_notebook(book: Path, out: Path) -> None:
    process = start(write(book, "'done'", SLOW.format(folder=str(out.parent))), out)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert outputs(out)[0][0].data["text/plain"] == "'done'"
    assert outputs(out)[1] == []


def test_ctrl_c_ends_the_cell_saves_the_notebook_and_goes_on_up(book: Path, out: Path) -> None:
    process = start(write(book, "'done'", SLOW.format(folder=str(out.parent)), "'never'"), out)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    done, stopped, never = outputs(out)
    assert done[0].data["text/plain"] == "'done'"
    assert stopped[0].ename == "KeyboardInterrupt"
    assert never == []
