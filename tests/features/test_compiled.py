"Compiled kernels: built once, by one process, and loaded only when every byte is the one that was written."

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tradenb.features import compiled
from tradenb.features.compiled import READY, Tally, build, digests, key, load, look, main

TOY = """import numba
import numpy as np

@numba.njit("f8(f8[:])", cache=True, nogil=True)
def run(x):
    total = 0.0
    for value in x:
        total += value
    return total
"""
SLOW = TOY.replace("import numpy as np", "import numpy as np\nimport sys, time\nsys.stderr.write('begun')\nsys.stderr.flush()\ntime.sleep(60)")  # fmt: skip
CALL = "import sys; from pathlib import Path; from tradenb.features.compiled import build, look; a, b = map(Path, sys.argv[1:3]); "
LOOK = CALL + "m, why = look(a, [b]); print(why or m.run(__import__('numpy').arange(5.0)))"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (file := tmp_path / "toy.py").write_text(TOY)
    return file


def python(code: str, *args: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, **options)


def total(source: Path, home: Path) -> float:
    module, why = look(source, [home])
    assert module is not None, why
    return module.run(np.arange(5.0))


def test_another_process_loads_what_was_built(toy: Path, tmp_path: Path) -> None:
    build(toy, [tmp_path / "home"])
    assert python(LOOK, toy, tmp_path / "home").stdout.strip() == "10.0"


def test_numba_s_own_settings_for_caches_change_nothing(toy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "numba"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(elsewhere)}
    assert python(CALL + "build(a, [b])", toy, tmp_path / "home", env=environment).stderr == ""
    assert python(LOOK, toy, tmp_path / "home", env=environment).stdout.strip() == "10.0"
    assert python(LOOK, toy, tmp_path / "home").stdout.strip() == "10.0"
    assert not elsewhere.exists()
    without_jit = python(LOOK, toy, tmp_path / "home", env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert without_jit.stdout.strip() == "NUMBA_DISABLE_JIT is set"


def test_two_processes_that_build_at_once_compile_once(toy: Path, tmp_path: Path) -> None:
    code = CALL + "build(a, [b], tell=print)"
    command = [sys.executable, "-c", code, str(toy), str(tmp_path / "home")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("Compiling") == 1
    assert total(toy, tmp_path / "home") == 10.0


def test_a_build_that_was_killed_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    (toy := tmp_path / "toy.py").write_text(SLOW)
    command = [sys.executable, "-c", CALL + "build(a, [b])", str(toy), str(tmp_path / "home")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr.read(5) == b"begun"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "home" / key(SLOW.encode()) / "kernels.py").exists()
    assert look(toy, [tmp_path / "home"])[0] is None
    toy.write_text(TOY)
    build(toy, [tmp_path / "home"])
    assert total(toy, tmp_path / "home") == 10.0


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone", "source", "ready"])
def test_a_damaged_folder_is_never_loaded_and_mended_by_building(toy: Path, tmp_path: Path, harm: str) -> None:
    folder = build(toy, [tmp_path / "home"])
    file = {"source": folder / "kernels.py", "ready": folder / READY}.get(harm, next(folder.rglob("*.nbc")))
    whole = file.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "flip": flipped, "ready": b"{"}.get(harm, b"#"))
    if harm == "gone":
        file.unlink()
    module, why = look(toy, [tmp_path / "home"])
    assert (module, why) == (None, f"{folder} is damaged")
    assert build(toy, [tmp_path / "home"]) == folder
    assert total(toy, tmp_path / "home") == 10.0


def test_loading_refuses_to_compile_even_where_ready_lies(toy: Path, tmp_path: Path) -> None:
    folder = build(toy, [tmp_path / "home"])
    (folder / "kernels.py").write_text(TOY.replace("total = 0.0", "total = 1.0"))
    (folder / READY).write_text(json.dumps(digests(folder)))
    module, why = look(toy, [tmp_path / "home"])
    assert (module, why) == (None, "NotCompiledError: run")


@pytest.mark.parametrize(
    "text", ["import nothing_of_this_name", "def run(x", "run = 3", TOY.replace('"f8(f8[:])", ', ""), TOY.replace("cache=True, ", "")]
)  # fmt: skip
def test_kernels_that_cannot_be_kept_are_an_error_of_the_build_alone(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy := tmp_path / "toy.py").write_text(text)
    assert main(toy, [tmp_path / "home"]) == 1
    assert "NumPy will do" in capsys.readouterr().err
    assert look(toy, [tmp_path / "home"])[0] is None


def test_the_second_place_is_used_where_the_first_cannot_be_written(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    places = [tmp_path / "file" / "home", tmp_path / "cache"]
    assert build(toy, places).parent == tmp_path / "cache"
    assert load(toy, places).run(np.ones(2)) == 2.0
    (toy_2 := tmp_path / "toy_2.py").write_text(TOY + "\n")
    assert main(toy_2, places[:1]) == 1


def test_kernels_in_a_folder_that_may_only_be_read_are_loaded(toy: Path, tmp_path: Path) -> None:
    "As root the process becomes nobody first, once all it needs is imported: nothing is read-only to root."
    (other := tmp_path / "other.py").write_text(TOY + "\n")
    build(other, [tmp_path / "home"])
    become = "look(Path(sys.argv[4]), [Path(sys.argv[3])]); import os; os.getuid() or os.seteuid(65534); "
    with tempfile.TemporaryDirectory() as place:
        (source := Path(place) / "toy.py").write_text(TOY)
        folder = build(source, [Path(place)])
        for path in (folder / "__pycache__", folder, Path(place)):
            path.chmod(0o555)
        shown = python(LOOK.replace("m, why", become + "m, why"), source, Path(place), tmp_path / "home", other)
        Path(place).chmod(0o755)
        for path in (folder, folder / "__pycache__"):
            path.chmod(0o755)
    assert (shown.stdout.strip(), shown.stderr) == ("10.0", "")


def test_old_folders_go_and_the_newest_few_stay(tmp_path: Path) -> None:
    folders = []
    for n in range(compiled.KEPT + 2):
        (toy := tmp_path / "toy.py").write_text(TOY.replace("0.0", f"{n}.0"))
        folders.append(build(toy, [tmp_path / "home"]))
        os.utime(folders[-1] / READY, (n + 1, n + 1))
    assert [folder.exists() for folder in folders] == [False] * 2 + [True] * compiled.KEPT


def test_the_hint_is_logged_once_and_says_what_to_do(toy: Path, tmp_path: Path) -> None:
    with capture_logs() as lines:
        assert [load(toy, [tmp_path / "home"]) for _ in range(3)] == [None] * 3
    assert [line["event"] for line in lines] == ["no_compiled_kernels"]
    assert "make install" in lines[0]["hint"]


def test_kernels_are_loaded_once_a_process_has_enough_to_compute() -> None:
    tally = Tally(worth=100)
    assert [tally.load(bars) for bars in (60, 39)] == [None, None]
    assert tally.load(1) is load()
    assert Tally().load(30_000) is None
