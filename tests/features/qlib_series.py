"""pyqlib's own expression objects on bars in memory: what a text is called there, and the series it makes.

Nothing of pyqlib is replaced but where a field's bars come from.
"""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
from qlib.data.base import Expression, Feature
from qlib.data.ops import OpsList
from qlib.utils import parse_field

BARS = 40
_instruments = itertools.count()  # pyqlib remembers a series by instrument and text: every question is a new one


def bars(seed: int = 3, n: int = BARS) -> dict[str, pd.Series]:
    "Six fields of one stock, 32-bit, with missing bars."
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(3, 0.3, (6, n))).astype(np.float32)
    values[:, rng.random(n) < 0.1] = np.nan
    names = ("open", "high", "low", "close", "volume", "vwap")
    return {f: pd.Series(x, index=pd.RangeIndex(n)) for f, x in zip(names, values, strict=True)}


def expression(text: str, fields: dict[str, pd.Series] | None = None) -> Expression:
    "pyqlib's object for a text."

    class InMemory(Feature):
        def load(self, *args: object) -> pd.Series:
            assert fields is not None
            return fields[self._name].copy()

    operators = {c.__name__: c for c in OpsList} | {"Feature": InMemory}
    return eval(parse_field(text), {"Operators": SimpleNamespace(**operators)})


def series(text: str, fields: dict[str, pd.Series] | None = None) -> pd.Series:
    "What pyqlib computes, before it casts the outcome to 32 bits."
    fields = fields or bars()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return expression(text, fields).load(f"TEST{next(_instruments)}", 0, len(fields["close"]) - 1)
