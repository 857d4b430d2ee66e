"The pages say what is: their links lead somewhere, the settings and commands that they name exist."

import configparser
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tradenb.core.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)|(?:src|srcset|href)=\"([^\"]+)\"")
SETTING = re.compile(
    r"(?<![\w./])([a-z]+)\.([a-z][a-z_]*)\b(?![(\w]|\.\w)(?<!\.db)(?<!\.lock)"
)  # neither a call nor a file nor a package
VARIABLE = re.compile(r"\bTRADENB_([A-Z]+)__([A-Z_]+)\b")
COMMAND = re.compile(r"\btradenb((?: [a-z][a-z-]*)+)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)

written = (page for page in (PROJECT / "docs").rglob("*.md") if "_build" not in page.parts)
pages = sorted([*PROJECT.glob("*.md"), *written, PROJECT / "data" / "README.md"])
books = sorted(p for p in (PROJECT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
each_page = pytest.mark.parametrize("page", pages, ids=lambda p: str(p.relative_to(PROJECT)))


def prose(page: Path) -> str:
    "What a page says; of a notebook its text cells, without formulas and code, in which brackets mean something else."
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(CODE.sub("", prose(page))):
        yield unquote(match[1] or match[2])


def anchors(page: Path) -> set[str]:
    "The names that headings can be linked by, as GitHub makes them."
    heads = re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> Iterator[str]:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix in (".md", ".ipynb") and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", [*pages, *books], ids=lambda p: str(p.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_to_something_that_is_there(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", [*pages, *books], ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_link_that_names_a_notebook_or_a_decision_by_its_number_leads_to_that_one(page: Path) -> None:
    numbered = re.findall(r"\[`?(\d{2,4})(?:_\w+)?`?\]\(\S*?(\d{2,4})[_-][\w-]+\.(?:ipynb|md)\)", prose(page))
    assert [(said, found) for said, found in numbered if said != found] == []


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    seen, ahead = set(), [PROJECT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if ":" not in link]
        ahead += [target / "README.md" if target.is_dir() else target for target in targets]
        ahead = [target for target in ahead if target.is_file()]
    assert [str(p.relative_to(PROJECT)) for p in pages if p not in seen and "docs" in p.parts] == []


@each_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {name: set(field.annotation.model_fields) for name, field in Settings.model_fields.items()}
    code = " ".join(CODE.findall(prose(page)))
    named = {(s, k) for s, k in SETTING.findall(code) if s in known and not is_module(s, k)}
    named |= {(s.lower(), k.lower()) for s, k in VARIABLE.findall(prose(page))}
    assert sorted(f"{s}.{k}" for s, k in named if k not in known.get(s, ())) == []


def is_module(room: str, name: str) -> bool:
    return (PROJECT / "tradenb" / room / f"{name}.py").is_file()


@each_page
def test_every_section_of_settings_ini_that_a_page_names_exists(page: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PROJECT / "settings.ini")
    named = re.findall(r"`\[([a-z]+)\](?: ([a-z_]+))?", prose(page))
    wrong = [s for s, k in named if s not in parser or (k and k not in parser[s])]
    assert wrong == []


@each_page
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    import typer

    from tradenb.cli.main import app

    tree = typer.main.get_command(app)
    for words in COMMAND.findall(" ".join(CODE.findall(prose(page)))):
        command, rest = tree, words.split()
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"tradenb{words}: there is no {rest[0]}"
            command, rest = command.commands[rest.pop(0)], rest


@each_page
def test_every_option_that_a_page_gives_to_a_command_exists(page: Path) -> None:
    import typer

    from tradenb.cli.main import app

    for block in CODE.findall(prose(page)):
        for words, rest in re.findall(r"\btradenb((?: [a-z][a-z-]*)+)([^`|#&\n]*)", block.replace("\\\n", " ")):
            command = typer.main.get_command(app)
            for word in words.split():
                command = getattr(command, "commands", {}).get(word, command)
            known = {"--help", *(name for option in command.params for name in option.opts)}
            given = re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
            assert [name for name in given if name not in known] == [], f"tradenb{words}"
