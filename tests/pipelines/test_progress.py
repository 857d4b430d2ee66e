"What a stage says of its progress reaches the screen, though its notebook captures what it prints."

from pathlib import Path

import nbformat
import polars as pl

from pipelines.engine import run_notebook
from tradenb.cli.screen import live, show_frame


def test_a_stage_speaks_to_the_screen_and_not_into_its_report(tmp_path: Path, capsys) -> None:
    book, out = nbformat.v4.new_notebook(), tmp_path / "out.ipynb"
    book.cells = [
        nbformat.v4.new_code_cell('root = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell('from tradenb.core.progress import say\nsay("halfway there")\nprint("kept")'),
    ]
    nbformat.write(book, tmp_path / "job.ipynb")
    with live(verbose=True):
        run_notebook(tmp_path / "job.ipynb", out, {})
    assert "halfway there" in capsys.readouterr().err
    shown = [o["text"] for cell in nbformat.read(out, as_version=4).cells for o in cell.get("outputs", [])]
    assert shown == ["kept\n"]


def test_a_table_that_goes_to_a_file_is_not_folded_to_eighty_columns(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "2017-01-17-alpha158_ls"
    show_frame(pl.DataFrame({"run": [name], **{f"column_{i}": ["1234567890"] for i in range(8)}}), "runs")
    assert name in capsys.readouterr().out
