"The site says what the code says: every setting, command and public name, and every notebook without its directives."

import json
import re
import sys
from pathlib import Path

import pytest

from tradenb.core.settings import SECRETS, Settings

PROJECT = Path(__file__).resolve().parents[1]


sys.path.insert(0, str(PROJECT / "docs"))

import books  # noqa: E402
import layout  # noqa: E402
import reference  # noqa: E402


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The pages go to a folder of the test."
    monkeypatch.setattr(layout, "SOURCE", tmp_path)
    return tmp_path


def test_every_setting_has_its_line_and_no_secret_a_default(elsewhere: Path) -> None:
    sections = reference.settings_sections()
    assert {f"{s}.{k.name}" for s, keys in sections.items() for k in keys} == {
        f"{section}.{key}" for section, field in Settings.model_fields.items() for key in field.annotation.model_fields
    }
    for section, keys in sections.items():
        for key in keys:
            assert key.about, f"{section}.{key.name} is not explained in settings.ini"
            assert not (key.default and f"{section}.{key.name}" in SECRETS)
    page = reference.settings_page()
    assert "| `max_position_share` | `0.10` | number > 0 ≤ 1 |" in page


def test_every_command_and_every_module_is_there(elsewhere: Path) -> None:
    import typer

    from tradenb.cli.main import app

    page = reference.command_page()
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n## tradenb {name}\n" in page
    names = reference.api_pages()
    assert "tradenb.portfolio.sizing" in names
    text = (elsewhere / "reference/api/tradenb.portfolio.sizing.md").read_text()
    assert "## plan_orders" in text and "capital: Decimal,  # money that a weight of 1.0 stands for" in text
    assert "return " not in re.sub(r'".*?"|#.*', "", text), "bodies are in the notebooks"


def test_notebooks_come_without_directives_and_links_to_folders_find_a_page(elsewhere: Path) -> None:
    book = PROJECT / "nbs" / "portfolio" / "05_sizing.ipynb"
    books.place(book, book)
    shown = json.loads((elsewhere / "nbs/portfolio/05_sizing.ipynb").read_text())
    assert not any(re.search(r"^#\|", "".join(cell["source"]), re.MULTILINE) for cell in shown["cells"])
    folded = [cell for cell in shown["cells"] if "hide-input" in cell["metadata"].get("tags", [])]
    assert len(folded) == 1 and all("import" in cell["source"] and "def " not in cell["source"] for cell in folded)
    assert layout.to_pages("[rooms](../../nbs/core) [x](y.md)", Path("docs/guide")) == "[rooms](../../nbs/core/index.md) [x](y.md)"  # fmt: skip
    assert set(layout.ROOMS) == {path.name for path in (PROJECT / "nbs").iterdir() if path.is_dir() and any(path.glob("*.ipynb"))}  # fmt: skip


def test_a_notebook_is_run_again_when_something_that_it_rests_on_changes_and_not_otherwise() -> None:
    below = {str(path.relative_to(PROJECT)) for path in books.behind(PROJECT / "nbs" / "portfolio" / "05_sizing.ipynb")}
    assert {"tradenb/portfolio/weights.py", "tradenb/core/errors.py", "settings.ini"} <= below
    assert not any(path.startswith(("tradenb/trading", "tradenb/execution", "pipelines")) for path in below)
    assert "tradenb/portfolio/tearsheet.py" in {
        str(p.relative_to(PROJECT)) for p in books.made_of("from tradenb.portfolio import (\n    tearsheet,\n)")
    }
