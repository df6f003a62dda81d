"""`prepare.build_data`: what a data module may return, and the trained network that its data is encoded with."""

from types import SimpleNamespace

import pytest

from data.bundle import Bundle
from prepare import build_data

FIELDS = {
    "train_dataset": [1, 2],
    "eval_datasets": {},
    "collate": list,
    "sampler": range,
    "dims": {"state_dim": 3},
}


def run_of(returned, **more):
    """A run whose data module returns this, and records how it was called."""
    module = SimpleNamespace(calls=[], **more)

    def build(*arguments, **options):
        module.calls.append((arguments, options))
        return returned

    module.build = build
    return SimpleNamespace(dataset=SimpleNamespace(module=module, config=object(), name="mine"))


def test_a_bundle_is_passed_on():
    bundle = Bundle(**FIELDS)
    run = run_of(bundle)
    assert build_data(run) is bundle
    assert run.dataset.module.calls == [((run.dataset.config, run), {})]


def test_an_object_with_the_attributes_of_a_bundle_becomes_one():
    units = {"tokens": 7}
    bundle = build_data(run_of(SimpleNamespace(**FIELDS, units=units, metrics=None, unrelated=1)))
    assert type(bundle) is Bundle and bundle.units == units and bundle.train_dataset == [1, 2]
    assert bundle.metrics == {} and not hasattr(bundle, "unrelated")  # None is the default


@pytest.mark.parametrize("missing", FIELDS)
def test_an_object_that_lacks_one_is_refused_by_name(missing):
    given = {name: value for name, value in FIELDS.items() if name != missing}
    with pytest.raises(ValueError, match=f"dataset `mine`.*{missing}") as caught:
        build_data(run_of(SimpleNamespace(**given)))
    assert "\n" not in str(caught.value)


def test_data_encoded_by_a_trained_network_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr("prepare.load_encoder", lambda folder: f"network in {folder}")
    run = run_of(Bundle(**FIELDS), encoder_path=lambda config: str(tmp_path))
    build_data(run)
    assert run.dataset.module.calls[0][1] == {"encoder": f"network in {tmp_path}"}
    plain = run_of(Bundle(**FIELDS), encoder_path=lambda config: None)
    build_data(plain)
    assert plain.dataset.module.calls[0][1] == {}
