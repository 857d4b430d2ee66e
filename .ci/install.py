"""Build .venv from requirements.lock: called by `make install` with any Python 3.11 or 3.12, standard library alone.

usage: python .ci/install.py STAMP     STAMP: the file that says "complete", named after the lock's hash
uv comes first, by pip and by its hash in the lock, because it installs the rest in a fifth of pip's time; where it cannot,
pip does it all. The stamp is written last, so an interrupted installation is never taken for a complete one.
"""

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VENV, LOCK = Path(".venv"), Path("requirements.lock")
PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / ".unfinished"


def say(text: str) -> None:
    print(f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def works() -> bool:
    "Is there an environment here that can be brought up to date, rather than one to build anew?"
    if UNFINISHED.exists() or not PYTHON.exists():
        return False
    elsewhere = [s for s in VENV.glob(".stamp-*") if s.read_text().strip() not in ("", str(Path.cwd()))]
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))"
    return not elsewhere and subprocess.run([PYTHON, "-c", check], capture_output=True).returncode == 0


def create() -> None:
    say(f"Creating .venv with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)


def pip(*args: str | Path) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *map(str, args)]


def bootstrap_uv() -> bool:
    "Install the lock's uv; False when there is none for this machine."
    block = re.search(r"^uv==.*\n(?:    .*\n?)*", LOCK.read_text(), re.MULTILINE)
    if not block:
        return False
    with tempfile.TemporaryDirectory() as folder:
        (only := Path(folder, "uv.txt")).write_text(block[0])
        return subprocess.run(pip("install", "--quiet", "--require-hashes", "-r", only)).returncode == 0


def pip_settings() -> dict[str, str]:
    "What the user told pip about where packages come from: files first, then the environment, as pip has it."
    lines = subprocess.run(pip("config", "list"), capture_output=True, text=True).stdout.splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line]
    rank = ("global", "install", ":env:")
    pairs.sort(key=lambda pair: rank.index(pair[0].rpartition(".")[0]) if pair[0].rpartition(".")[0] in rank else -1)
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


def uv_environment() -> dict[str, str]:
    "The environment for uv, which does not read pip's configuration; what is set for uv itself wins."
    told = pip_settings()
    ours = {
        "UV_DEFAULT_INDEX": told.get("index-url", ""),
        "UV_INDEX": " ".join(told.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(told.get("find-links", "").split()),
        "UV_INSECURE_HOST": " ".join(told.get("trusted-host", "").split()),
        "UV_NO_INDEX": "1" if told.get("no-index", "").lower() in ("1", "true", "yes", "on") else "",
        "SSL_CERT_FILE": told.get("cert", ""),
        "UV_HTTP_TIMEOUT": told.get("timeout", "") or told.get("default-timeout", "") or "120",
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip: any index may serve a version, the hash decides
        "UV_LINK_MODE": "copy" if sys.platform == "linux" and not same_disk() else "",
    }
    if any(os.environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")):
        ours = {name: value for name, value in ours.items() if "INDEX" not in name}
    return {name: value for name, value in ours.items() if value} | dict(os.environ)


def same_disk() -> bool:
    "Can uv link from its cache, or must it copy?"
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))
    while not cache.exists():
        cache = cache.parent
    return cache.stat().st_dev == VENV.stat().st_dev


def install() -> None:
    count = len(re.findall(r"^[A-Za-z0-9].*==", LOCK.read_text(), re.MULTILINE))
    say(f"Installing {count} locked packages: some minutes the first time, mostly download")
    locked = ["install", "--require-hashes", "-r", LOCK]
    if bootstrap_uv():
        uv = [str(VENV / "bin" / "uv"), "pip"]
        args = ["--python", PYTHON, "--compile-bytecode", *locked[1:]]
        if subprocess.run([*uv, "install", *map(str, args)], env=uv_environment()).returncode == 0:
            return
        say("uv could not install the lock; pip tries")
    subprocess.run(pip(*locked), check=True)


def main(stamp: Path) -> None:
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second make waits, and finds the work done
        if not stamp.exists():
            build(stamp)


def build(stamp: Path) -> None:
    if not works():
        create()
    UNFINISHED.touch()
    for old in VENV.glob(".stamp-*"):
        old.unlink()
    install()
    UNFINISHED.unlink()
    stamp.write_text(f"{Path.cwd()}\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"the environment is not complete: `{' '.join(map(str, error.cmd))}` failed; `make` starts it anew")
    except KeyboardInterrupt:
        sys.exit("interrupted; `make` starts the environment anew")
