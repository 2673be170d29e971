from __future__ import annotations

import pytest

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.model_config import MODELS
from raypipe.core.parameters import changed_parameters, flatten, nest, parameter_names, parse_config
from tests.support.toys import tiny


def test_flat_and_nested_names_are_equivalent():
    flat = parse_config({"loss/name": "focal", "loss/gamma": 2.0, "sam/name": "sam", "epochs": 3})
    assert flat == parse_config({"loss": {"name": "focal", "gamma": 2.0}, "sam": {"name": "sam"}, "epochs": 3})
    assert (flat.loss.gamma, flat.sam.name, flat.epochs) == (2.0, "sam", 3)


def test_flat_names_and_nested_sections_may_mix():
    assert nest({"loss/gamma": 1, "loss": {"beta": 2}}) == {"loss": {"gamma": 1, "beta": 2}}
    assert nest({"loss": {"beta": 2}, "loss/gamma": 1}) == {"loss": {"gamma": 1, "beta": 2}}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss/gama": 1}, "unknown parameter 'loss/gama'; did you mean 'loss/gamma'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"sam/rho": 0}, "parameter 'sam/rho': Input should be greater than 0"),
        ({"sam/name": "sharp"}, "parameter 'sam/name'.*'none', 'sam', 'asam', 'looksam' or 'msam'"),
        ({"model/filters": 41}, r"must be a multiple of heads \(10\)"),
        ({"epochs": "many"}, "parameter 'epochs'.*given 'many'"),
        ({"epochs": 3, "epochs/x": 1}, "'epochs' is itself a parameter"),
    ],
)
def test_bad_parameters_are_one_line(params, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(params, "spaces/x.py")
    assert "\n" not in str(caught.value)


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TrialConfig().epochs = 3


def test_equal_values_have_equal_hashes():
    assert TrialConfig().hash() == parse_config({"epochs": 20}).hash()
    assert TrialConfig().hash() != parse_config({"epochs": 21}).hash()
    assert TrialConfig.model_validate(TrialConfig().model_dump(mode="json")).hash() == TrialConfig().hash()


def test_a_single_store_without_a_name_is_not_recorded():
    assert "data" not in TrialConfig().model_dump(mode="json")
    assert "data/store" not in flatten(TrialConfig())
    named = parse_config({"data/store": "a", "model/name": "linear"})
    assert named.model_dump(mode="json")["data"] == {"store": "a"}
    assert changed_parameters(named)["data/store"] == "a"
    assert TrialConfig.model_validate_json(named.model_dump_json()) == named


def test_any_parameter_changes_the_hash():
    changes = [{}, {"sampling": "subject"}, {"target_scale": "robust"}, {"shrink": 0.5}, {"model/bins": 8}]
    changes += [
        {"loss/width": 1, "loss/name": "kl", "model/bins": 8},
        {"model/name": "vit"},
        {"model/name": "vit", "model/patch": 10},
        {"optim/cycles": 5},
        {"init/rank": 8},
        {"pretrain/mask": 0.5},
    ]
    assert len({tiny(**one).hash() for one in changes}) == len(changes)


def test_sam_costs_two_passes():
    assert TrialConfig().passes == 1
    assert parse_config({"sam/name": "asam"}).passes == 2


@pytest.mark.parametrize("model", MODELS)
def test_every_listed_name_is_known_and_names_of_another_model_are_not(model):
    own = parameter_names(MODELS[model], "model/")
    for name in parameter_names():
        with pytest.raises(UserError) as caught:
            parse_config({"model/name": model, name: object()})
        assert "unknown parameter" not in str(caught.value)
        assert name in str(caught.value)
        other = name.startswith("model/") and name not in own
        assert other == (f"not for model/name={model}" in str(caught.value))


def test_a_model_that_there_is_not_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"model/name: there is no model 'confomer'; did you mean 'conformer'\?"):
        parse_config({"model/name": "confomer"})
    with pytest.raises(UserError, match=r"unknown parameter 'model/filter'; did you mean 'model/filters'\?"):
        parse_config({"model/name": "tcn", "model/filter": 3})


NUMBERS = [name for name, default in flatten(TrialConfig()).items() if not isinstance(default, str)]
HUGE = {"large": 10**30, "endless": 10**5000, "negative": -(10**5000), "float": 1e300, "inf": float("inf")}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("kind", HUGE)
def test_every_number_has_bounds(name, kind):
    value = HUGE[kind]
    with pytest.raises(UserError, match=name) as caught:
        parse_config({name: [value, value] if name == "optim/betas" else value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_model_that_is_fitted_in_closed_form_has_one_epoch():
    config = parse_config({"model/name": "linear", "model/components": 4})
    assert config.epochs == 1 and changed_parameters(config) == {"model/name": "linear", "model/components": 4}
    assert parse_config({"model/name": "vit"}).epochs == TrialConfig().epochs
