"""KunQuant's own Alpha158, a compiler of factors to C++, where its wheel and a C++ compiler are there.

It is no dependency of the project: its wheel is unpacked once into a folder of the user's cache (XDG_CACHE_HOME) and found there.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from tradenb.features.panel import Panel

VERSION = "0.1.12"
LANES, LANES_PER_PART = 8, 4  # 256-bit vectors of float32; its own tests' partition
PRICES = ("open", "high", "low", "close")
WINDOWS = [5, 10, 20, 30, 60]


def folder() -> Path:
    "Where this version is kept for this Python."
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tradenb" / f"kunquant-{VERSION}-{sys.implementation.cache_tag}"


def fetch() -> None:
    "Unpack the wheel; a folder that is there is complete."
    folder().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder().parent) as tmp:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        wheel = ["--only-binary=:all:", "--target", f"{tmp}/new", f"KunQuant=={VERSION}"]
        subprocess.run([*pip, *wheel], check=True, capture_output=True, text=True)
        Path(tmp, "new").rename(folder())


def why_not() -> str:
    "Empty when it can run, otherwise the reason; fetches it when it is not there yet."
    compiler = "clang++" if platform.system() == "Darwin" else "g++"
    if not shutil.which(compiler):
        return f"there is no {compiler} on PATH, which it compiles its factors with"
    try:
        if not folder().exists():
            fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return f"its wheel does not install: {said[-1]}"
    return ""


def inputs(panel: Panel) -> dict[str, NDArray[np.float32]]:
    "Fields as it wants them, (sessions, symbols): the amount in place of the vwap."
    fields = {f: panel.fields[f] for f in (*PRICES, "volume")}
    fields["amount"] = panel.fields["vwap"] * panel.fields["volume"]
    return {f: np.ascontiguousarray(x.T) for f, x in fields.items()}


def alpha158(panel: Panel, threads: int) -> Callable[[], NDArray[np.float32]]:
    "Compile, and return what computes (features, sessions, symbols), the features in the order of its module."
    sys.path.append(str(folder()))
    from KunQuant.Driver import KunCompilerConfig
    from KunQuant.jit import cfake
    from KunQuant.Op import Builder, Input, Output
    from KunQuant.predefined.Alpha158 import AllData
    from KunQuant.runner import KunRunner
    from KunQuant.Stage import Function

    builder = Builder()
    with builder:
        data = AllData(**{f: Input(f) for f in (*PRICES, "volume", "amount")})
        price = {"windows": [0], "feature": [(f.upper(), getattr(data, f)) for f in ("open", "high", "low", "vwap")]}
        for value, name in zip(*data.build({"kbar": {}, "price": price, "rolling": {"windows": WINDOWS}}), strict=True):
            Output(value, name)
    config = KunCompilerConfig(dtype="float", blocking_len=LANES, partition_factor=LANES_PER_PART, input_layout="TS",
                               output_layout="TS", options={"opt_reduce": True, "fast_log": True, "no_fast_stat": "no_warn"})  # fmt: skip
    module = cfake.compileit([("alpha158", Function(builder.ops), config)], "alpha158", cfake.CppCompilerConfig())
    program, bars = module.getModule("alpha158"), inputs(panel)
    executor, names = KunRunner.createMultiThreadExecutor(threads), list(program.getOutputNames())

    def compute() -> NDArray[np.float32]:
        out = np.empty((len(names), *bars["close"].shape), np.float32)
        KunRunner.runGraph(executor, program, bars, 0, len(bars["close"]), dict(zip(names, out, strict=True)))
        return out

    compute.names = names  # type: ignore[attr-defined]
    compute.module = module  # type: ignore[attr-defined]  # Kept alive as long as its program
    return compute
