"""Run the benchmarks and print what they measured, for a reader and for a script.

usage: python -m pipelines.benchmarks [NAME ...]     without a name: all of them, one after the other
"""

import difflib
import importlib
import pkgutil
import sys

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tradenb.core.errors import InputError, TradenbError, one_line

from . import Result, __path__


def available() -> list[str]:
    "The names of the benchmarks: the modules beside this one, with hyphens."
    return sorted(
        module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def chosen(names: list[str]) -> list[str]:
    "`names`, or all; `InputError` for one that does not exist."
    for name in names:
        if name not in available():
            near = difflib.get_close_matches(name, available(), 1)
            raise InputError(
                f"there is no benchmark {name!r}: "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"There are {', '.join(available())}"
            )
    return names or available()


def measured(names: list[str], console: Console) -> dict[str, list[Result]]:
    "Results by benchmark, with the running one and its time on the screen."
    results = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for name in names:
            module = importlib.import_module(f"pipelines.benchmarks.{name.replace('-', '_')}")
            doing = f"{name}: {first_line(module.__doc__)}"
            if not console.is_terminal:
                console.print(doing)
            task = progress.add_task(doing, total=None)
            results[name] = module.main()
            progress.remove_task(task)
    return results


def first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def significant(value: float) -> str:
    "Four figures, without an exponent where a person would not write one."
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(results: dict[str, list[Result]]) -> Table:
    "One row per result, a rule between benchmarks."
    view = Table("measured", "value", "unit", title="Benchmarks", title_justify="left")
    view.columns[1].justify = "right"
    for rows in results.values():
        for name, value, unit in rows:
            view.add_row(name, significant(value), unit)
        view.add_section()
    return view


def main(arguments: list[str]) -> int:
    "The table for a person, then a line `RESULT name value unit` each for a script."
    console = Console()
    try:
        results = measured(chosen(arguments), console)
    except TradenbError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    console.print(table(results))
    for name, value, unit in (row for rows in results.values() for row in rows):
        print(f"RESULT {name} {value:.6g} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
