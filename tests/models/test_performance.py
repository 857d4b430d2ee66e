"Figures of a return series equal other libraries, or a hand-computed value where the libraries disagree."

import math
import statistics
from itertools import combinations

import numpy as np
import pytest

from tradenb.models import performance as m


def test_sharpe_and_drawdown_equal_their_definitions():
    returns = np.random.default_rng(5).normal(0.0005, 0.01, 300)
    by_hand = statistics.mean(returns) / statistics.stdev(returns) * math.sqrt(252)
    assert math.isclose(m.sharpe(returns), by_hand, rel_tol=1e-12)
    curve = [math.prod(1 + returns[:n]) for n in range(len(returns) + 1)]
    deepest = min(later / earlier - 1 for earlier, later in combinations(curve, 2))
    assert math.isclose(m.max_drawdown(returns), deepest, rel_tol=1e-9)


def test_drawdown_counts_a_loss_on_the_first_session():
    assert m.max_drawdown(np.array([-0.1, 0.05])) == pytest.approx(-0.1)
    assert m.max_drawdown(np.array([])) == 0.0
