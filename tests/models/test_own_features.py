"A set of one's own trains, is stored with the model, and is what the model is served, whatever becomes of its file."

from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest

from tradenb.core.errors import ExpressionError, ModelError
from tradenb.features import sets
from tradenb.features.engine import compute
from tradenb.features.sets import FeatureSet, feature_set
from tradenb.models.registry import DEFINITION, ModelCard, Registry
from tradenb.models.training import train

from .conftest import SMALL

CARD = ModelCard(vintage={"bars": 4}, settings_hash="0123456789abcdef")
OWN = """
name = "reversal"
[features]
LAST = "$close/Ref($close,1)-1"
CROSS = "EMA($close,5)/EMA($close,20)-1"
CALM = "Std($close/Ref($close,1)-1, 10)"
"""


@pytest.fixture(scope="module")
def own(market, root_with_mlflow, tmp_path_factory):
    "A model on a set from a file: the file, its registry, the version and its training."
    folder = root_with_mlflow(tmp_path_factory.mktemp("own"))
    (folder / "reversal.toml").write_text(OWN)
    result = train(market, feature_set("reversal.toml", folder), SMALL)
    registry = Registry(folder, "own")
    return folder / "reversal.toml", registry, registry.log_and_register(result, CARD), result


def test_a_feature_that_looks_ahead_is_refused_before_anything_is_trained(market):
    leaking = FeatureSet.of("leaking", {"MOM": "$close/Ref($close,5)", "NEXT": "Mean(Ref($close,-1),3)/$close"})
    heard = []
    with pytest.raises(ExpressionError, match=r"feature set leaking, feature NEXT: Ref\(\$close,-1\) in"):
        train(market, leaking, SMALL, progress=lambda *what: heard.append(what))
    assert heard == []


def test_a_model_learns_from_a_set_of_ones_own(own):
    _, _, _, result = own
    assert result.feature_set.names == ("LAST", "CROSS", "CALM") and result.feature_set.halo is None
    assert result.metrics["rank_ic"] > 0.05


def test_a_model_keeps_its_features_when_their_file_is_edited_or_gone(own):
    path, registry, version, result = own
    path.write_text(OWN.replace("10)", "12)"))
    edited = feature_set(str(path))
    path.unlink()
    model = registry.load(version)
    path.write_text(OWN)
    assert model.features == result.feature_set and model.feature_hash == result.feature_set.hash != edited.hash
    assert (model.feature_set, model.feature_names) == ("reversal", result.feature_set.names)


def test_a_loaded_model_predicts_from_the_features_it_brings(own, market):
    _, registry, version, result = own
    model = registry.load(version)
    x = compute(market, model.features).matrix()
    assert np.array_equal(model.predict(x), result.model.predict(compute(market, result.feature_set).matrix()))


def test_a_model_whose_engine_computes_other_values_today_is_refused(own, monkeypatch):
    _, registry, version, _ = own
    monkeypatch.setattr(sets, "SEMANTICS", "other bits")
    with pytest.raises(ModelError, match=r"feature hash: found .* by this code, expected .* as trained; train again"):
        registry.load(version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("Ref($close,1)", "Ref($close,2)"), "feature hash: found"),
        (lambda text: text.replace("Std", "Stdd"), "features: found .*unknown operator Stdd"),
        (lambda text: "{}", "features: found no feature set in this text"),
        (
            lambda text: text.replace("reversal", "momentum"),
            "feature set: found momentum, expected reversal as registered",
        ),
        (None, "features: found FileNotFoundError"),
    ],
)
def test_a_definition_that_was_touched_is_refused(own, change, message):
    _, registry, version, _ = own
    run = registry.client.get_run(registry.client.get_model_version(registry.name, str(version)).run_id)
    path = Path(url2pathname(urlparse(run.info.artifact_uri).path), DEFINITION)
    kept = path.read_text()
    try:
        path.unlink() if change is None else path.write_text(change(kept))
        with pytest.raises(ModelError, match=message):
            registry.load(version)
    finally:
        path.write_text(kept)
    assert registry.load(version).feature_set == "reversal"
