"""Run a parameterised notebook and keep what it showed, also when it fails.

papermill executes; this module adds an engine that runs the cells in the present process (a kernel costs seconds, this costs a tenth of one),
refuses parameters that the notebook does not declare, and turns a failing cell into one line with the exit code of its cause.
"""

import ast
import atexit
import base64
import contextlib
import difflib
import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import nbformat
from IPython.core import interactiveshell
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook
from papermill.iorw import LocalHandler, papermill_io

from tradenb.core.errors import ConfigError, DependencyError, RunFailed, TradenbError
from tradenb.trading.troubles import told_as

IN_PROCESS = "in-process"
EngineName = Literal["in-process", "kernel"]

_one_at_a_time = threading.RLock()


def run_notebook(
    source: Path,  # The notebook as committed; exactly one of its cells is tagged `parameters`
    output: Path,  # Where the executed notebook goes; folders are made, a former one is replaced
    parameters: dict[str, Any],  # JSON values for names that the `parameters` cell assigns
    engine: EngineName = "in-process",  # `kernel`: a process of its own, some seconds slower
) -> None:
    """Execute `source` with `parameters` and save it, cell by cell, to `output`.

    Raises `ConfigError` when the notebook or the parameters cannot be right (nothing ran), the cell's own `TradenbError`, or `RunFailed` for any
    other exception; the failing cell and its traceback are then in `output`.
    """
    check_parameters(source, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        execute_notebook(
            _literal(source),
            "atomic://" + _literal(output.resolve()),
            parameters,
            engine_name=IN_PROCESS if engine == IN_PROCESS else None,  # None: papermill's own, a kernel
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        raise _in_one_line(source, error, injected=bool(parameters)) from None


def _literal(path: Path) -> str:
    "papermill formats paths as templates: braces in a folder's name are not ours to fill in."
    return str(path).replace("{", "{{").replace("}", "}}")


# ---- parameters


def declared_parameters(source: Path) -> list[str]:
    "The names that the `parameters` cell of a notebook assigns; `ConfigError` unless there is exactly one such cell."
    if not source.is_file():
        raise ConfigError(f"there is no notebook {source}")
    cells = [c for c in nbformat.read(source, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"{source.name} has {len(cells)} cells tagged 'parameters', expected exactly one")
    return [name for statement in ast.parse(cells[0].source).body for name in _assigned(statement)]


def _assigned(statement: ast.stmt) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    "Refuse a parameter that the notebook does not declare, or whose value is not JSON."
    known = declared_parameters(source)
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"{source.name} knows no parameter {name}{hint}; it knows {', '.join(known)}")
        _require_json(source, name, value)


def _require_json(source: Path, name: str, value: Any) -> None:
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ConfigError(
            f"{source.name}: parameter {name} is a {type(value).__name__}, expected a JSON value (a date as ISO text)"
        )


# ---- failures


def _in_one_line(source: Path, error: PapermillExecutionError, injected: bool) -> TradenbError:
    "The failure with its place in the source, which lacks the cell of injected parameters."
    kind, place = error_class(error.ename), f"{source.name}, cell {error.cell_index + 1 - injected}"
    trouble = told_as(error.ename, str(error.evalue))
    if trouble and not issubclass(kind or RunFailed, DependencyError):
        return type(trouble)(f"{place}: {trouble}")
    lines = [line.strip() for line in str(error.evalue).splitlines() if line.strip()]
    cause = lines[0] if lines else error.ename
    cause = cause if kind or not lines else f"{error.ename}: {cause}"
    return (kind or RunFailed)(f"{place}: {cause}")


def error_class(name: str) -> type[TradenbError] | None:
    "The class of our error tree called `name`: a kernel tells an error's name only."
    below: list[type[TradenbError]] = [TradenbError]
    while below:
        kind = below.pop()
        if kind.__name__ == name:
            return kind
        below += kind.__subclasses__()
    return None


# ---- the engine


class InProcessEngine(Engine):
    "A papermill engine that runs the cells in this process, each notebook in a namespace of its own."

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **_: Any) -> None:
        "Run cell after cell, saving before and after each, up to the first that fails."
        with _one_at_a_time, _fresh_shell() as shell:
            for index, cell in enumerate(nb_man.nb.cells):
                if cell.cell_type == "code" and not _run_cell(shell, nb_man, cell, index):
                    break


def _run_cell(shell: Any, nb_man: NotebookExecutionManager, cell: Any, index: int) -> bool:
    "Execute one cell into its outputs. False when it failed; what is no `Exception` (Ctrl-C) is raised again once saved."
    nb_man.cell_start(cell, index)
    with _streams() as (stdout, stderr), capture_output(stdout=False, stderr=False) as shown:
        result = InteractiveShell.run_cell(shell, cell.source, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    cell.execution_count = result.execution_count
    cell.outputs = [
        *_stream_outputs(stdout=stdout.getvalue(), stderr=stderr.getvalue()),
        *(_display("display_data", o.data, o.metadata) for o in shown.outputs),
        *_result_outputs(shell, result),
        *([_error_output(error)] if error else []),
    ]
    if error:
        nb_man.cell_exception(cell, index)
    nb_man.cell_complete(cell, index)
    if error and not isinstance(error, Exception) and not is_panic(error):
        raise error
    return error is None


def is_panic(error: BaseException) -> bool:
    "Whether a Rust library broke down (polars on a damaged file): no `Exception` to Python, yet a failure of the cell like any other."
    return type(error).__name__ == "PanicException"


def _stream_outputs(**texts: str) -> list[Any]:
    return [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts.items() if text]


def _result_outputs(shell: Any, result: Any) -> list[Any]:
    if result.result is None:
        return []
    data, metadata = shell.display_formatter.format(result.result)
    return [_display("execute_result", data, metadata, execution_count=result.execution_count)]


def _display(kind: str, data: dict[str, Any], metadata: dict[str, Any] | None, **more: int) -> Any:
    plain = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in data.items()}
    return nbformat.v4.new_output(kind, data=plain, metadata=metadata or {}, **more)


def _error_output(error: BaseException) -> Any:
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_code.co_filename == interactiveshell.__file__:
        frames = frames.tb_next
    lines = "".join(traceback.format_exception(type(error), error, frames)).splitlines()
    return nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error), traceback=lines)


# ---- isolation


@contextlib.contextmanager
def _fresh_shell() -> Iterator[Any]:
    "A shell with an empty namespace and inline SVG charts; leaves the process as it was."
    from execnb.shell import CaptureShell

    main, instance, hook = sys.modules["__main__"], InteractiveShell._instance, sys.displayhook
    with _charts() as pyplot:
        shell = CaptureShell(mpl_format=None)
        InteractiveShell._instance = shell
        _inline_svg(shell)
        try:
            yield shell
        finally:
            pyplot.uninstall_repl_displayhook()
            shell.close()
            shell.loop.close()
            atexit.unregister(shell.atexit_operations)
            InteractiveShell._instance, sys.modules["__main__"], sys.displayhook = instance, main, hook


def _inline_svg(shell: Any) -> None:
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    shell.enable_matplotlib("inline")
    set_matplotlib_formats("svg", metadata={"Date": None})


@contextlib.contextmanager
def _charts() -> Iterator[Any]:
    "matplotlib's pyplot, detached from any other shell; its figures, backend and settings are put back afterwards."
    import matplotlib
    from matplotlib import pyplot

    backend = matplotlib.get_backend()
    pyplot.uninstall_repl_displayhook()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tradenb"}):
        try:
            yield pyplot
        finally:
            pyplot.close("all")
            pyplot.switch_backend(backend)
    pyplot.install_repl_displayhook()


class _ThreadStream(io.TextIOBase):
    "Collects what its own thread writes; every other thread (a progress display, a server) reaches the console as before."

    def __init__(self, console: TextIO):
        self.console, self.text, self.owner = console, io.StringIO(), threading.get_ident()

    def _target(self) -> Any:
        return self.text if threading.get_ident() == self.owner else self.console

    def write(self, text: str) -> int:
        return self._target().write(text)

    def flush(self) -> None:
        self._target().flush()

    def isatty(self) -> bool:
        return self._target().isatty()

    def fileno(self) -> int:
        return self.console.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.console.encoding

    def getvalue(self) -> str:
        return self.text.getvalue()


@contextlib.contextmanager
def _streams() -> Iterator[tuple[_ThreadStream, _ThreadStream]]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = _ThreadStream(before[0]), _ThreadStream(before[1])
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


def write_whole(path: Path, text: str) -> None:
    "Write by renaming a finished draft: at no moment does `path` hold half a file."
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


class _AtomicHandler(LocalHandler):
    "Saves notebooks so that whoever reads them, or kills us, finds them whole."

    scheme: ClassVar[str] = "atomic://"

    def write(self, buf: str, path: str) -> None:
        write_whole(Path(path.removeprefix(self.scheme)), buf)

    def pretty_path(self, path: str) -> str:
        return path.removeprefix(self.scheme)


papermill_engines.register(IN_PROCESS, InProcessEngine)
papermill_io.register(_AtomicHandler.scheme, _AtomicHandler())
