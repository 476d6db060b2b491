"""Recipes: those that ship are valid, mistakes are reported with their place."""

from __future__ import annotations

import pytest

from nasspace import files
from nasspace.documents import Document
from nasspace.engine import checks
from nasspace.errors import InputError
from nasspace.studies import recipe


@pytest.mark.parametrize("name", sorted(files.names("search")))
def test_shipped_recipes_are_valid_and_reproducible(name):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert loaded.time_budget is None, "a shipped recipe is reproducible, so it has no time limit"


def test_changes_keep_the_rest():
    changed = recipe.load("quick").with_changes({"trials": 3, "limits": {"latency": "20ms"}, "fidelity": {"epochs": 2}})
    assert (changed.trials, changed.limits.latency, changed.fidelity.epochs) == (3, 20.0, 2)
    assert changed.fidelity.resolution == recipe.load("quick").fidelity.resolution
    assert changed.with_changes({}) == changed, "limits are written with their units"


def test_time_alone_ends_a_search_without_a_number_of_trials(tmp_path):
    quick = recipe.load("quick")
    timed = quick.with_changes({"time_budget": "30m"})
    assert (timed.trials, timed.time_budget) == (recipe.UNBOUNDED, 1800.0)
    assert timed.with_changes({}) == timed
    both = quick.with_changes({"time_budget": "30m", "trials": 5})
    assert (both.trials, both.with_changes({"seed": 1}).trials) == (5, 5)
    (tmp_path / "timed.yaml").write_text("time_budget: 2h")
    assert recipe.load(tmp_path / "timed.yaml").trials == recipe.UNBOUNDED


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("20ms", "latency", 20),
        ("0.5 s", "latency", 500),
        ("150M", "count", 150e6),
        ("7", "count", 7),
        ("2h", "time", 7200),
        ("512kb", "memory", 2**19),
        ("300K", "count", 300e3),
        ("40m", "count", 40e6),
        ("20MS", "latency", 20),
    ],
)
def test_quantities(text, kind, value):
    assert recipe.quantity(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [("20", "latency"), ("-3ms", "latency"), ("0ms", "latency"), ("ms", "latency"), ("3 parsecs", "latency"),
     ("1e400ms", "latency"), ("nan", "count"), ("150Q", "count"), ("30", "time"), ("", "time")],
)  # fmt: skip
def test_wrong_quantities_are_refused_with_an_example(text, kind):
    with pytest.raises(ValueError, match="such as"):
        recipe.quantity(text, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial: 3", "1: trial: 'trial' is not a setting; did you mean 'trials'"),
        ("trials: 0", "trials: 0 is not allowed"),
        ("name: x\nfidelity: {epoch: 2}", "2: fidelity.epoch: 'epoch' is not a setting; did you mean 'epochs'"),
        ("objectives: [acuracy]", "objectives"),
        ("objectives: [latency, latency]", "objectives"),
        ("limits: {latency: 20}", "limits.latency: 20 has no unit"),
        ("- a", "a recipe is a mapping"),
        ("rungs: 3", "rungs: 3 is not allowed: rungs are a list such as [{epochs: 6}"),
        ("rungs:\n- {epochs: 2}\n- {epoch: 3}", "3: rungs[1].epoch: 'epoch' is not a setting; did you mean 'epochs'"),
        ("rungs: [{epochs: 0}]", "rungs[0].epochs: 0 is not allowed"),
        ("full: 7", "full: 7 is not allowed: a full training is a mapping such as {epochs: 25}"),
    ],
)
def test_mistakes_are_named_with_their_line(text, message):
    with pytest.raises(InputError) as caught:
        recipe.read(files.parse_yaml(text, "r.yaml"))
    assert message in str(caught.value)
    assert str(caught.value).startswith("r.yaml")


def test_a_study_of_an_earlier_version_continues_with_defaults(tmp_path):
    """study.yaml of an earlier version lacks new training settings."""
    new = {"space": {"document": {}}, "task": {}, "data": {}, "limits": {}, "evaluator": "f", "storage": None}
    new["recipe"] = recipe.Recipe().as_written()
    training = {key: value for key, value in new["recipe"]["training"].items() if key != "mixup"}
    old = {**new, "recipe": {**new["recipe"], "training": training}}
    checks.check_same_settings(tmp_path, old, new)
    mixed = {**new, "recipe": {**new["recipe"], "training": {**training, "mixup": 0.2}}}
    with pytest.raises(InputError, match=r"started with another training: mixup 0\.0, now 0\.2;"):
        checks.check_same_settings(tmp_path, old, mixed)
    limited = {**new, "limits": {"latency": 20.0}}
    with pytest.raises(InputError, match=r"searched with the limits none, now they are latency 20 ms;"):
        checks.check_same_settings(tmp_path, old, limited)


DIGITS = {"name": "digits", "classes": list("0123456789"), "train": 1438, "validation": 359, "fingerprint": "a1"}
PHOTOS = {"name": "imagefolder:/p", "classes": ["cat", "dog"], "train": 1200, "validation": 300, "fingerprint": "b2"}


def settings(data=DIGITS, resolution=16, evaluator=None, **changes):
    written = recipe.Recipe(**changes).as_written()
    parts = {"space": {"document": {}}, "limits": {}, "storage": None, "machine": {}, "recipe": written}
    size = {"classes": len(data["classes"]) if data else 10, "channels": 1, "resolution": resolution}
    return {**parts, "task": size, "data": data, "evaluator": evaluator}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            settings(PHOTOS),
            "was searched on digits (10 classes, 1,438 training and 359 validation images), now it is on "
            "imagefolder:/p (2 classes, 1,200 training and 300 validation images); "
            "its classes '0', '1', '2', '3' are not there;",
        ),
        (
            settings({**DIGITS, "name": "parquet:/d", "fingerprint": "c3"}),
            "now it is on parquet:/d (10 classes, 1,438 training and 359 validation images), fingerprint c3;",
        ),
        (
            settings({**DIGITS, "train": 1439, "fingerprint": "c3"}),
            "was searched on other images of digits (fingerprint a1, now c3, 1,797 and now 1,798 of them);",
        ),
        (
            settings({**DIGITS, "fingerprint": "c3"}, 32),
            "was searched for the deployment resolution 16, now it is 32;",
        ),
        (settings({**DIGITS, "fingerprint": "c3"}, seed=3), "was started with seed 0, now it is 3;"),
        (settings({**DIGITS, "fingerprint": "c3"}, held_out=0.3), "was started with held_out 0.2, now it is 0.3;"),
        (settings(None, evaluator="f"), "validation images), now it is with the evaluator f;"),
        (settings(limits={"flops": 1e6}), ""),
    ],
)
def test_different_data_are_described_in_a_sentence(tmp_path, new, message):
    if not message:
        return checks.check_same_settings(tmp_path, settings(), new)
    with pytest.raises(InputError) as caught:
        checks.check_same_settings(tmp_path, settings(), new)
    assert f"{message} choose another --study name" in str(caught.value)
    assert "{" not in str(caught.value)
    checks.check_same_settings(tmp_path, settings(), settings({**DIGITS, "name": "parquet:/moved"}))
    return None


def test_the_options_of_a_sampler(tmp_path):
    assert recipe.Recipe().sampler_options == {}
    (tmp_path / "soft.yaml").write_text("sampler: mnasnet\nreward: {form: soft}\nnetadapt: {proposals: 3}")
    soft = recipe.load(tmp_path / "soft.yaml")
    assert soft.sampler_options == {"form": "soft", "exponent": None}
    assert soft.with_changes({"sampler": "netadapt"}).sampler_options == {
        "reduction": 0.01,
        "proposals": 3,
        "start": None,
    }
    assert soft.with_changes({"reward": {"exponent": -0.5}}).reward == recipe.Reward(form="soft", exponent=-0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward: soft", "'soft' is not allowed: a reward is a mapping such as"),
        ("reward: {forme: soft}", "'forme' is not a setting; did you mean 'form'"),
        ("reward: {form: hart}", "reward.form: 'hart' is not allowed"),
        ("netadapt: 3", "3 is not allowed: netadapt is a mapping such as"),
        ("netadapt: {reduction: 0}", "netadapt.reduction: 0 is not allowed"),
        ("netadapt: {proposal: 2}", "'proposal' is not a setting; did you mean 'proposals'"),
    ],
)
def test_wrong_options_of_a_sampler_are_refused(tmp_path, text, message):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        recipe.load(tmp_path / "wrong.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "mnasnet"}, "give --latency-target or --flops-target or --params-target"),
        ({"sampler": "mnasnet", "limits": {"flops": 1e6}, "objectives": ["latency", "flops"]}, "add accuracy"),
        ({"sampler": "netadapt", "objectives": ["accuracy", "flops"]}, "give --latency-target, such as 20ms"),
    ],
)
def test_a_sampler_without_its_target_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        checks.check_recipe(recipe.Recipe().with_changes(changes))


def test_a_sampler_with_its_target_is_accepted():
    for changes in (
        {"sampler": "mnasnet", "limits": {"params": 1e6}, "objectives": ["accuracy"]},
        {"sampler": "netadapt", "objectives": ["accuracy", "latency"]},
        {"sampler": "netadapt", "objectives": ["accuracy"], "limits": {"latency": "2ms"}},
    ):
        checks.check_recipe(recipe.Recipe().with_changes(changes))


@pytest.mark.parametrize(
    "change",
    [
        {"fidelity": {"epochs": True}},
        {"training": {"threads": True}},
        {"training": {"milestones": [True]}},
        {"rungs": [{"epochs": True}]},
        {"limits": {"flops": True}},
        {"netadapt": {"reduction": True}},
    ],
)
def test_true_is_no_number_in_any_part(change):
    with pytest.raises(InputError, match="True"):
        recipe.Recipe().with_changes(change)
    assert not recipe.Recipe().with_changes({"training": {"flip": False}}).training.flip


def test_the_choices_of_a_first_network_are_one_value():
    first = recipe.Recipe().with_changes({"netadapt": {"start": {"a": 1, "b": None}}})
    assert first.netadapt.start == {"a": 1, "b": None}
    assert first.with_changes({"netadapt": {"start": {"c": 2}}}).netadapt.start == {"c": 2}
    assert recipe.read_value(first.as_written(), Document({}, "")) == first


def test_the_accuracy_in_int8_follows_from_the_objectives():
    int8 = recipe.Recipe().with_changes({"objectives": ["accuracy_int8", "latency"]})
    assert (int8.objectives, int8.accuracy_of) == (("accuracy", "latency"), "int8")
    assert int8.with_changes({"trials": 3}).accuracy_of == "int8"
    assert int8.with_changes({"objectives": ["accuracy", "flops"]}).accuracy_of == "float32"
    with pytest.raises(InputError, match="accuracy and accuracy_int8 exclude each other"):
        recipe.Recipe().with_changes({"objectives": ["accuracy", "accuracy_int8"]})


def test_options_of_another_sampler_are_named():
    changed = recipe.Recipe().with_changes({"reward": {"form": "soft"}, "training": {"patience": 3}})
    lines = changed.without_effect()
    assert lines[0] == "reward: without effect, since the sampler is 'gain'; it is for mnasnet"
    assert lines[1].startswith("training.patience: without effect")
    assert len(changed.with_changes({"sampler": "mnasnet"}).without_effect()) == 1
