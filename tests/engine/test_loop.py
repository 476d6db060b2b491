"""The search as a whole, with evaluators that need no training."""

from __future__ import annotations

import functools
import inspect
import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
from pandas.testing import assert_frame_equal

import nasspace
from nasspace import cost, files
from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.engine import loop
from nasspace.engine.evaluator import Outcome
from nasspace.engine.problem import Problem
from nasspace.errors import InputError, NothingFound
from nasspace.samplers import pareto
from nasspace.samplers.optuna_samplers import SAMPLERS
from nasspace.space.space import Space
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe

SPACE = """
name: little
input: [3, 32, 32]
stem: [{block: conv, out: 16}]
stages:
  - {depth: [1, 2, 3], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, conv]}}
  - {depth: [1, 2], out: [32, 64], stride: 2, each: {block: [sandglass, fire: {squeeze: [0.125, 0.5]}]}}
"""


def flops(architecture):
    return cost(architecture).flops


def scored(architecture):
    """An evaluator without training: accuracy grows with depth, accuracy and latency have noise by network."""
    noise = random.Random(architecture.digest)
    counted = cost(architecture)
    accuracy = 0.5 + 0.04 * len(architecture.layers) + 0.05 * noise.random()
    return {"accuracy": accuracy, "latency": counted.memory_access / 1e5 + noise.random(), "flops": counted.flops}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def space():
    return Space.from_text(SPACE, "little.yaml")


def found(space, **settings):
    settings = {"trials": 8, "evaluator": scored, "known": {"flops": flops}, "study": "s", **settings}
    return nasspace.search(space, **settings)


# `mnasnet` and `netadapt` need a target.
SETTINGS = {
    "mnasnet": {"latency_target_ms": 2.0},
    "netadapt": {"latency_target_ms": 1.6, "trials": 60, "netadapt": {"reduction": 0.02, "proposals": 4}},
}


def digests(study):
    return [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_evaluates_each_network_once_and_returns_the_front(space, sampler):
    settings = SETTINGS.get(sampler, {})
    study = found(space, sampler=sampler, **settings)
    trials, front = study.trials(), study.front()
    assert len(trials) == len(set(digests(study))) == study.evaluated
    assert study.evaluated == 8 or study.ended_early.startswith("a network within the limits was reached")
    trials = trials[trials["latency_ms"] <= settings.get("latency_target_ms", 1e9)]
    best = pareto.front([[-r.accuracy, r.latency_ms, r.flops] for r in trials.itertuples()])
    assert sorted(front["id"]) == sorted(trials["id"].to_numpy()[best])
    assert (paths.folder_of("s") / "front.csv").is_file()
    assert study.document()["front"][0]["architecture"]["layers"]


@pytest.mark.parametrize("sampler", ["gain", "tpe"])
def test_trials_have_the_names_of_their_blocks(space, sampler):
    study = found(space, sampler=sampler, trials=3)
    for trial in study.frozen("COMPLETE"):
        blocks = [layer.block for layer in study.architecture(trial.number).layers]
        named = trial.user_attrs["blocks"]
        assert named == {name: blocks[1 + i] for i, name in enumerate(named)}
        assert named.keys() == {name for name in trial.params if name.endswith(".block")}
        assert all(trial.params[name] in (0, 1) for name in named)


@pytest.mark.parametrize("sampler", ["gain", "tpe", "mnasnet", "netadapt"])
def test_the_same_seed_gives_the_same_study(space, sampler):
    settings = {"sampler": sampler, **SETTINGS.get(sampler, {})}
    first = digests(found(space, study="a", seed=3, **settings))
    assert digests(found(space, study="b", seed=3, **settings)) == first
    assert digests(found(space, study="c", seed=4, **settings)) != first


def test_networks_over_a_known_limit_are_never_evaluated(space):
    study = found(space, flops_target=1e6)
    assert study.evaluated == 8
    assert study.trials()["flops"].max() <= 1e6


@pytest.mark.parametrize("target", ["110KB", 110 * 1024, numpy.int64(110 * 1024)])
def test_a_limit_of_memory_has_a_unit_or_is_in_bytes(space, target):
    study = found(space, memory_target=target, flash_target="1MB", study=str(target))
    assert study.limits == {"peak_memory": 110 * 1024, "flash": 2**20}
    assert study.front()["peak_memory_bytes"].max() <= 110 * 1024


def test_a_limit_of_memory_that_no_network_keeps_is_named(space):
    with pytest.raises(NothingFound, match=r"within the limits \(peak_memory 1 KB\)"):
        found(space, memory_target="1KB")


@pytest.mark.parametrize("target", ["30", "30kilobytes", 0, -1, True, [1], float("nan")])
def test_a_wrong_limit_of_memory_is_refused(space, target):
    with pytest.raises(InputError, match=r"memory_target: .*512KB"):
        found(space, memory_target=target)


@pytest.mark.parametrize("sampler", ["gain", "brute-force", "mnasnet"])
def test_a_small_space_is_searched_to_its_end(sampler):
    tiny = Space.from_text("input: [3, 8, 8]\nstages: [{out: [4, 8], block: [conv: {kernel: [1, 3]}, fire]}]", "t.yaml")
    every = {architecture.digest for architecture in tiny.enumerate()}
    study = found(tiny, trials=100, sampler=sampler, latency_target_ms=100.0)
    assert set(digests(study)) == every
    assert study.ended_early.endswith(f"; {len(every)} evaluated")
    assert len(digests(study)) == len(every)


def test_brute_force_follows_the_order_of_the_space_and_is_stopped_by_no_limit(space):
    first = {one.digest for one, _ in zip(space.enumerate(), range(20), strict=False)}

    def rejected_first(architecture):
        if architecture.digest in first:
            return {"latency": 9.0}
        return scored(architecture)

    study = found(space, sampler="brute-force", evaluator=rejected_first, latency_target_ms=8.0, trials=3)
    assert (study.evaluated, study.rejected) == (3, 20)
    assert digests(study) == [one.digest for one, _ in zip(space.enumerate(), digests(study), strict=False)]


@pytest.mark.parametrize(("sampler", "form"), [("mnasnet", "soft"), ("netadapt", "hard")])
def test_some_samplers_train_networks_over_the_limits_but_never_show_them(space, sampler, form):
    settings = {**SETTINGS[sampler], "latency_target_ms": 1.4, "flops_target": 2e6}
    study = found(space, sampler=sampler, reward={"form": form}, **{"trials": 20, **settings})
    trials, front = study.trials(), study.front()
    assert trials["accuracy"].notna().all()
    assert (trials["latency_ms"] > 1.4).any()
    assert (trials["flops"] > 2e6).any()
    assert len(front)
    assert front["latency_ms"].max() <= 1.4
    assert front["flops"].max() <= 2e6
    over = trials[(trials["latency_ms"] > 1.4) | (trials["flops"] > 2e6)]
    assert over["reason"].str.contains("is over the limit of").all()


@pytest.mark.parametrize("reference", ["first:3", "first.json", "choices"])
def test_a_path_starts_at_a_network_of_an_earlier_search(space, reference):
    first = found(space, study="first")
    network = first.architecture(3)
    other = network.with_classes(7).with_input(1)
    Path("first.json").write_text(Architecture.of(other.to_dict()["layers"], input=other.input).to_json())
    start = space.choices_of(network) if reference == "choices" else reference
    settings = {**SETTINGS["netadapt"], "netadapt": {"start": start}}
    with pytest.raises(NothingFound):
        found(space, sampler="netadapt", **{**settings, "trials": 1})
    shutil.rmtree(first.folder)
    Path("first.json").unlink()
    kept = records.load("s").settings["recipe"]["netadapt"]
    study = found(space, sampler="netadapt", **{**settings, "netadapt": kept})
    assert digests(study)[0] == network.digest
    assert study.evaluated > 5


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("mobilenet_v2_1.0", "netadapt.start: mobilenet_v2_1.0: not a network of the space 'little'; name a network"),
        ("nothing:1", "netadapt.start: "),
        ({"stages.0.depth": 99}, "netadapt.start: 99 is not an option of 'stages.0.depth'; known: "),
        ({"stages.0.depth": True}, "netadapt.start: True is not an option of 'stages.0.depth'"),
        ({"stages.0.depth": 1}, "is missing; name the choices of a whole network"),
        ("", "netadapt.start: '' is not allowed"),
        ({"stages.0.deepth": 1}, "netadapt.start: 'stages.0.deepth' is not a choice of the space 'little'"),
        (5, "netadapt.start: 5 is not allowed: the first network is an architecture such as STUDY:ID"),
    ],
)
def test_a_start_outside_the_space_is_one_message(space, start, message):
    with pytest.raises(InputError, match=re.escape(message)):
        found(space, sampler="netadapt", **{**SETTINGS["netadapt"], "netadapt": {"start": start}})
    assert not Path("reports/s").exists()


def test_a_start_is_resolved_once_for_a_search_with_data(space):
    first = found(space, study="first")
    settings = {"sampler": "netadapt", "data": "digits", "limits": {"latency": "5ms"}, "resolution": 32}
    recipe = Recipe().with_changes({**settings, "netadapt": {"start": "first:2"}})
    problem = Problem.from_data(recipe, space)
    written = problem.settings("s", None)
    chosen = problem.recipe.netadapt.start
    assert problem.space.replay(chosen).layers[0].block == first.architecture(2).layers[0].block
    shutil.rmtree(first.folder)
    again = Problem.from_data(recipes.read(Document(written["recipe"], "study.yaml")), space)
    assert again.recipe.netadapt.start == chosen


def test_a_space_is_recorded_as_the_command_takes_it(space):
    """Its own name may be another one: a copy of a shipped file keeps that of the original."""
    recipe = Recipe().with_changes({"data": "digits", "resolution": 8})
    text = (files.folders("spaces")[-1] / "spos.yaml").read_text()
    for path in (Path("spaces/copied.yaml"), Path("elsewhere/copied.yaml")):
        path.parent.mkdir()
        path.write_text(text)
    taken = ["spos", "copied", "elsewhere/copied.yaml", space]
    written = [Problem.from_data(recipe, one).settings("s", None)["space"] for one in taken]
    assert [one["source"] for one in written] == ["spos", "copied", "elsewhere/copied.yaml", None]
    assert {one["name"] for one in written[:3]} == {"spos"}


def test_a_wrapped_function_is_judged_by_what_it_takes(space):
    def with_scale(architecture, scale):
        return {**scored(architecture), "latency": scale}

    @functools.wraps(with_scale)
    def wrapped(architecture):
        return with_scale(architecture, 2.0)

    assert found(space, evaluator=wrapped, trials=1).evaluated == 1


def test_a_path_that_ends_above_the_target_names_the_nearest(space):
    notes = []
    with pytest.raises(NothingFound, match=r"the nearest is s:\d+"):
        found(
            space,
            sampler="netadapt",
            latency_target_ms=0.001,
            trials=200,
            netadapt={"reduction": 0.3, "proposals": 3},
            on_event=lambda kind, **event: notes.append(event["text"]) if kind == "note" else None,
        )
    assert any("no change of one choice lowers latency by another" in note for note in notes)


@pytest.mark.parametrize("sampler", ["gain", "random"])
def test_no_network_within_the_limits_names_the_nearest(space, sampler):
    def rejected(architecture):
        return {"latency": scored(architecture)["latency"], "flops": flops(architecture)}

    with pytest.raises(NothingFound, match=r"the nearest is s:\d+ \(digest [0-9a-f]{12}\) with latency") as caught:
        found(space, evaluator=rejected, latency_target_ms=0.001, sampler=sampler)
    assert caught.value.exit_status == 3
    study = records.load("s")
    assert study.evaluated == 0
    assert study.rejected < 30


def test_flops_out_of_reach_name_the_cheapest(space):
    with pytest.raises(NothingFound, match="flops"):
        found(space, flops_target=1000)


def test_a_study_continues_only_with_the_settings_it_was_started_with(space):
    found(space)
    longer = found(space, trials=11)
    assert longer.evaluated == 11
    with pytest.raises(InputError, match="another space"):
        found(Space.load("shuffle"))
    with pytest.raises(InputError, match="seed"):
        found(space, seed=9)


def test_an_evaluator_that_returns_no_number_is_named(space):
    with pytest.raises(InputError, match="accuracy"):
        found(space, evaluator=lambda architecture: {"accuracy": "high", "latency": 1, "flops": 1})
    with pytest.raises(InputError, match="no 'latency'"):
        found(space, study="t", evaluator=lambda architecture: {"accuracy": 0.5, "flops": 1})


def test_a_study_of_another_version_is_refused(space):
    study = found(space)
    path = study.folder / "study.yaml"
    path.write_text(path.read_text().replace("nasspace_study: 1", "nasspace_study: 7"))
    with pytest.raises(InputError, match="version 7"):
        records.load("s")


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_loop import SETTINGS, SPACE, flops, scored
import nasspace
def slow(architecture):
    time.sleep(0.03)
    return scored(architecture)
settings = {{"trials": 14, "sampler": sys.argv[2], **SETTINGS.get(sys.argv[2], {{}})}}
nasspace.search(nasspace.Space.from_text(SPACE, "little.yaml"), evaluator=slow, known={{"flops": flops}},
                study=sys.argv[1], **settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gain", "tpe", "brute-force", "mnasnet", "netadapt"])
def test_a_search_killed_at_any_moment_ends_with_the_same_study(space, sampler, forked):
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    settings = {"trials": 14, "sampler": sampler, **SETTINGS.get(sampler, {})}
    uninterrupted = found(space, study="uninterrupted", **settings)
    rng = random.Random(5)
    kills = 0
    while kills < (4 if sampler == "gain" else 2):
        process = forked(code, "killed", sampler)
        while not (Path("reports/killed/study.db")).is_file() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.05, 1.0))
        process.kill()
        process.wait()
        kills += 1
    assert forked(code, "killed", sampler).wait() == 0
    killed = records.load("killed")
    assert digests(killed) == digests(uninterrupted)
    fronts = [study.front().drop(columns="architecture") for study in (killed, uninterrupted)]  # it holds the name
    for one, other in (fronts, (killed.trials(), uninterrupted.trials())):
        assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


def test_a_time_budget_ends_a_search_and_can_be_raised(space):
    """The evaluator moves the deadline, so no clock is involved."""
    started = []

    def scored_in_time(architecture):
        study = started[-1]
        if study.evaluated % 5 == 4:  # the fifth of this search
            study.deadline = 0.0
        return scored(architecture)

    def on_event(kind, **event):
        if kind == "start":
            started.append(event["study"])

    def searched():
        return found(space, trials=500, evaluator=scored_in_time, time_budget="1h", sampler="random", on_event=on_event)

    assert searched().evaluated == 5
    assert searched().evaluated == 10


def test_a_study_and_its_folder_may_have_braces_in_their_names(space, tmp_path, monkeypatch):
    (tmp_path / "of {0}").mkdir()
    monkeypatch.chdir(tmp_path / "of {0}")
    assert found(space, trials=2, study="a{x}").evaluated == 2
    assert records.load("a{x}").evaluated == 2


class Failing:
    """An evaluator that fails for some networks."""

    known: ClassVar = {"flops": flops}

    def __init__(self, fails):
        self.fails = fails

    def __call__(self, architecture):
        if architecture.digest in self.fails:
            raise RuntimeError("out of memory")
        return Outcome(scored(architecture))


def test_a_search_continues_after_a_failed_training(space, monkeypatch):
    first = digests(found(space, study="whole"))
    monkeypatch.setattr(
        loop.Problem, "from_function", classmethod(lambda cls, recipe, space, *_: failing(cls, recipe, space))
    )

    def failing(cls, recipe, space):
        evaluator = Failing({first[6]})
        evaluator.function = scored
        return cls(recipe, space, evaluator=evaluator)

    study = found(space)
    assert study.evaluated == 8
    assert first[6] not in digests(study)
    assert len(study.frozen("FAIL")) == 1


def test_a_study_killed_before_its_database_was_created_is_started(space):
    found(space, study="whole")
    folder = Path("reports/s")
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(Path("reports/whole/study.yaml").read_text().replace("name: whole", "name: s"))
    (folder / ".study.yaml.abc").write_text("half")
    assert found(space).evaluated == 8


def test_a_link_to_nothing_is_named(space):
    Path("reports").symlink_to("nowhere")
    with pytest.raises(InputError, match="reports: cannot be written"):
        found(space, study=None)
    with pytest.raises(InputError, match="cannot be written"):
        found(space, study="s")


def test_a_search_that_cannot_start_leaves_no_folder(space, monkeypatch):
    monkeypatch.setattr(records, "create", lambda *_: (_ for _ in ()).throw(InputError("the disk is full")))
    for name in (None, "s"):
        with pytest.raises(InputError, match="full"):
            found(space, study=name)
        assert list(Path("reports").iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "st\udce9", "a\x1b[31m", "x" * 300])
def test_a_name_that_cannot_be_a_folder_is_refused(space, name):
    with pytest.raises(InputError, match="name"):
        found(space, study=name)
    assert not Path("reports").exists()


def test_braces_in_a_name_are_letters(space):
    assert found(space, trials=2, study="a{0}").evaluated == 2
    assert records.load("a{0}").evaluated == 2


def test_of_two_processes_that_start_one_study_the_first_one_wins(space, forked):
    """The settings are those of the process whose trials are in the database."""
    code = SCRIPT.format(tests=str(Path(__file__).parent)).replace(
        '"trials": 14', '"trials": 2, "seed": int(sys.argv[3])'
    )
    for race in range(2):
        name = f"race{race}"
        racing = [forked(code, name, "random", str(seed)) for seed in (1, 2)]
        errors = [process.communicate()[1] for process in racing]
        status = [process.returncode for process in racing]
        assert 0 in status, errors
        won = status.index(0) + 1
        assert records.load(name).settings["recipe"]["seed"] == won
        if 1 in status:
            assert "another process is searching" in errors[status.index(1)] or "seed" in errors[status.index(1)]


def test_a_missing_record_is_not_replaced(space):
    study = found(space)
    for path in study.folder.glob("study.db*"):
        path.unlink()
    with pytest.raises(InputError, match=r"study\.db is missing"):
        records.load("s")


def test_a_damaged_study_is_named(space):
    study = found(space)
    path = study.folder / "study.yaml"
    path.write_text("nasspace_study: 1\nname: s\n")
    with pytest.raises(InputError, match="damaged"):
        records.load("s")


def test_a_shared_storage_is_joined_from_elsewhere_with_the_same_settings(space, tmp_path):
    url = "sqlite:///shared.db"
    study = found(space, storage=url)
    assert study.evaluated == 8
    with pytest.raises(InputError, match="seed"):
        found(space, storage=url, study=tmp_path / "other" / "s", seed=5)
    joined = found(space, storage=url, study=tmp_path / "elsewhere" / "s", trials=10)
    assert joined.evaluated == 10
    assert len(set(digests(joined))) == 10
    assert digests(study) == digests(joined)
    os.chdir(tmp_path.parent)
    assert records.load(tmp_path / "reports" / "s").evaluated == 10, "a relative path is found from anywhere"


def test_latency_against_flops_needs_no_accuracy(space):
    def measured(architecture):
        return {"latency": scored(architecture)["latency"]}

    study = found(space, evaluator=measured, objectives=["latency", "flops"])
    assert study.evaluated == 8
    assert len(study.front())


def test_an_accuracy_in_percent_is_refused(space):
    with pytest.raises(InputError, match="fraction"):
        found(space, evaluator=lambda architecture: {**scored(architecture), "accuracy": 93.0})


def test_two_processes_do_not_search_one_study(space):
    study = found(space)
    with paths.alone(study.folder), pytest.raises(InputError, match="another process"):
        found(space, trials=9)


def test_choices_that_the_space_does_not_have_are_refused(space):
    import sqlite3

    study = found(space)
    connection = sqlite3.connect(study.folder / "study.db")
    with connection:
        text = '{"name": "CategoricalDistribution", "attributes": {"choices": [91, 92, 93]}}'
        connection.execute("UPDATE trial_params SET distribution_json = ? WHERE rowid = 1", (text,))
    connection.close()
    with pytest.raises(InputError, match=r"trial 0 chose stages\.\S+ among \(91, 92, 93\), which the space"):
        found(space, trials=10)


class Odd:
    """A value of no use anywhere."""


ARGUMENTS = [name for name in inspect.signature(loop.search).parameters if name not in ("space", "data")]
BOOLEANS = ("skip_broken", "deliver", "fresh_latency")


@pytest.mark.parametrize("name", ["space", *ARGUMENTS])
def test_a_value_of_a_wrong_type_is_one_message(space, monkeypatch, name):
    """Every argument takes some kind of these values; all others raise `InputError` before the search starts."""
    monkeypatch.setattr(loop, "_run", lambda *_: pytest.fail("the search starts"))
    wrong = [Odd(), [Odd()], (1, 2), {5: 1}, {"x": 1}, b"\xff"]
    usual = {"space": space, "evaluator": scored}
    for value in wrong:
        with pytest.raises(InputError) as caught:
            loop.search(**{**usual, name: value})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latency_target_ms": "20ms"}, "latency_target_ms: '20ms' is not a number of milliseconds, such as 20"),
        ({"objectives": "accuracy"}, "objectives: 'accuracy' is not allowed: objectives are a list such as"),
        ({"objectives": 5}, "objectives: 5 is not allowed: objectives are a list such as"),
        ({"rungs": 5}, "rungs: 5 is not allowed: rungs are a list"),
        ({"threads": {"x": 1}}, "threads: "),
        ({"recipe": 5}, "5 is not a recipe: give a name or a path"),
        ({"study": 5}, "5: a study is a name or a path"),
        ({"storage": 5}, "storage: 5 is not a URL"),
        ({"storage": ""}, "storage: '' is not a URL"),
        ({"evaluator": 5}, "evaluator: 5 is not a function"),
        ({"evaluator": lambda: {}}, "is not a function of an architecture"),
        ({"known": {"flops": 5}}, "known: {'flops': 5} is not a dictionary of functions"),
        ({"known": {"flops": lambda: 5}}, "known: 'flops' is <function"),
        ({"on_event": 3}, "on_event: 3 is not a function of an event's kind"),
        ({"on_event": lambda kind: None}, "is not a function of an event's kind and its values"),
        ({"deliver": "no"}, "deliver: 'no' is neither True nor False"),
        ({"fresh_latency": "x"}, "fresh_latency: 'x' is neither True nor False"),
        ({"trials": True}, "trials: True is not a number"),
        ({"skip_broken": 1}, "skip_broken: 1 is not allowed"),
    ],
)
def test_messages_of_wrong_types_name_the_argument(space, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        loop.search(**{"space": space, "evaluator": scored, **arguments})


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in BOOLEANS])
def test_true_stands_for_no_number_and_no_text(space, monkeypatch, name):
    monkeypatch.setattr(loop, "_run", lambda *_: pytest.fail("the search starts"))
    with pytest.raises(InputError):
        loop.search(**{"space": space, "evaluator": scored, name: True})


@pytest.mark.parametrize("value", [None, "many", True, float("nan"), -1, {}, [1, 2]])
@pytest.mark.parametrize("sampler", ["gain", "random", "mnasnet", "evolution"])
def test_a_known_function_that_returns_no_number_is_one_message(space, value, sampler):
    limits = {"flops_target": 1e12} if sampler == "mnasnet" else {}
    with pytest.raises(InputError, match="known: 'flops' is "):
        loop.search(
            space, evaluator=lambda _: {"accuracy": 0.5}, known={"flops": lambda _: value}, trials=2,
            objectives=["accuracy", "flops"], sampler=sampler, study="s", **limits,
        )  # fmt: skip


def test_a_front_with_very_large_counts_is_printed(space):
    study = loop.search(
        space, evaluator=lambda _: {"accuracy": 0.5, "flops": 3 * 2.0**63, "params": 3}, trials=1,
        objectives=["accuracy", "flops"], study="s",
    )  # fmt: skip
    assert "2.767" in repr(study.front())


def test_objectives_and_rungs_are_any_iterables(space):
    chosen = (name for name in ("accuracy", "flops"))
    study = loop.search(space, evaluator=scored, objectives=chosen, rungs=iter([{"epochs": 2}]), trials=2, study="s")
    assert study.objectives == ("accuracy", "flops")
    assert study.settings["recipe"]["rungs"] == [{"epochs": 2, "resolution": None, "share": 1.0}]
