"""The documentation as a site to read offline: guide, concepts, notebooks with their results, reference, decisions, runbooks.

usage: python docs/build.py [--quick] [--jobs N]
`--quick` leaves the notebooks as they are, without running them. A notebook that was run is kept until it, a module that it rests on, or the settings change.
The pages are laid out below docs/_build/source as they lie in the project, so that every link between them holds, and Sphinx makes docs/_build/html.
"""

import argparse
import os
import sys

from books import books, place, room_pages, run_books
from layout import BUILD, HTML, PROJECT, ROOMS, SOURCE, lay_out, say, toctree, write
from reference import api_pages, command_page, settings_page


def front_page() -> str:
    "The README's own words, and the ways in."
    text = (SOURCE / "README.md").read_text(encoding="utf-8")
    sections = [f"docs/{name}/README" for name in ("guide", "concepts")] + ["nbs/index", "reference/index"]
    sections += [
        f"docs/{name}/README" for name in ("runbooks", "decisions") if (PROJECT / "docs" / name / "README.md").is_file()
    ]
    return text + toctree(sections, maxdepth="2")


def write_generated() -> None:
    "All pages that nobody writes by hand."
    rooms = room_pages()
    rows = "\n".join(f"| [{room}]({room}/index.md) | {about} |" for room, about in ROOMS.items())
    say_rooms = "The platform is written in notebooks; the package is exported from them. From the floor upwards:"
    write(
        "nbs/index.md",
        f"# Notebooks\n\n{say_rooms}\n\n| room | what is in it |\n|---|---|\n{rows}" + toctree(rooms, maxdepth="2"),
    )
    write("reference/settings.md", settings_page())
    write("reference/cli.md", command_page())
    modules = api_pages()
    listed = "\n".join(f"- [{name}]({name}.md)" for name in modules)
    write(
        "reference/api/index.md",
        f"# Package\n\nEvery public name, as its notebook defines it.\n\n{listed}" + toctree(modules),
    )
    write(
        "reference/index.md",
        "# Reference\n\n- [Settings](settings.md)\n- [The command line](cli.md)\n- [Package](api/index.md)\n- [What appears at run time](../data/README.md)"
        + toctree(["settings", "cli", "api/index", "What appears at run time <../data/README>"]),
    )
    write("index.md", front_page())
    (SOURCE / "README.md").unlink()


def main(arguments: list[str] | None = None) -> int:
    "Build the site; the exit code."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="do not run the notebooks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at the same time")
    asked = parser.parse_args(arguments)
    lay_out()
    failed = [] if asked.quick else run_books(asked.jobs)
    for book in books() if asked.quick else ():
        place(book, book)
    write_generated()
    from sphinx.cmd.build import build_main

    code = build_main(["-q", "-j", str(asked.jobs), "-d", str(BUILD / "doctrees"), str(SOURCE), str(HTML)])
    for text in failed:
        print(f"did not run: {text}", file=sys.stderr)
    say(f"open {HTML / 'index.html'}")
    return code or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
