"What a stage says of its progress reaches the screen, though its notebook captures what it prints."

from pathlib import Path

import nbformat

from pipelines.engine import run_notebook
from tradenb.cli import live


def test_a_stage_speaks_to_the_screen_and_not_into_its_report(tmp_path: Path, capsys) -> None:
    book, out = nbformat.v4.new_notebook(), tmp_path / "out.ipynb"
    book.cells = [
        nbformat.v4.new_code_cell('root = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell('from tradenb.trading.run import say\nsay("halfway there")\nprint("kept")'),
    ]
    nbformat.write(book, tmp_path / "job.ipynb")
    with live(verbose=True):
        run_notebook(tmp_path / "job.ipynb", out, {})
    assert "halfway there" in capsys.readouterr().err
    shown = [o["text"] for cell in nbformat.read(out, as_version=4).cells for o in cell.get("outputs", [])]
    assert shown == ["kept\n"]
