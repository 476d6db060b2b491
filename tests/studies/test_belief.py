"""What a study reports of accuracies after full training."""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from nasspace.samplers import pareto
from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior
from nasspace.studies import study as records
from nasspace.studies.belief import StudyBelief, believe
from nasspace.studies.front import Front
from nasspace.studies.schema import DEPLOYED, LAST_RUNG, RUNG

RECORDED = Path(__file__).parents[1] / "recorded" / "study"


def opened(folder: Path, **settings) -> records.Study:
    """The recorded study of an earlier version, with other settings in its study.yaml."""
    place = folder / "reports" / "real"
    place.mkdir(parents=True)
    document = yaml.safe_load((RECORDED / "study.yaml").read_text())
    (place / "study.yaml").write_text(yaml.safe_dump({**document, **settings}))
    with sqlite3.connect(place / "study.db") as connection:
        connection.executescript((RECORDED / "study.sql").read_text())
    connection.close()
    return records.load("real")


@pytest.fixture
def before(tmp_path, monkeypatch) -> records.Study:
    monkeypatch.chdir(tmp_path)
    return opened(tmp_path)


@pytest.fixture
def study(tmp_path, monkeypatch) -> records.Study:
    monkeypatch.chdir(tmp_path)
    return opened(tmp_path, belief=asdict(Prior()))


def test_a_study_of_an_earlier_version_has_no_belief_and_its_front(before):
    document = before.document()
    assert before.belief() is None
    for member in document["front"]:
        assert (member["accuracy_low"], member["accuracy_high"], member["accuracy_ties"]) == (None, None, None)
        assert member["accuracy_expected"] == member["accuracy"]
    assert document["fidelity_tau"] is None
    assert before.snapshot().ranking_note == ""
    assert document["may_belong"] is None


def test_every_member_has_an_interval_and_the_front_is_that_of_the_expected_accuracies(study):
    front, document = study.snapshot(), study.document()
    assert document["front"]
    for member in document["front"]:
        assert 0 <= member["accuracy_low"] < member["accuracy_expected"] < member["accuracy_high"] <= 1
    points = [[-m["accuracy_expected"], m["latency_ms"], m["flops"]] for m in document["front"]]
    assert pareto.front(points).all()
    rows = {row["id"]: row for row in front.trials}
    for member in document["front"]:
        assert rows[member["id"]]["accuracy_low"] == member["accuracy_low"]


@pytest.mark.parametrize("earlier", [False, True])
def test_activations_count_but_not_in_a_study_of_an_earlier_version(study, earlier):
    prior = {name: value for name, value in asdict(Prior()).items() if not (earlier and "activation" in name)}
    trials, attributes = study.frozen("COMPLETE"), study.record.user_attrs
    settings = {**study.settings, "belief": prior}
    without = believe(settings, trials, attributes)
    for trial in trials:
        trial.user_attrs["activations"] = 10**4 * (1 + trial.number)
    found = believe(settings, trials, attributes)
    same = [found.expected(number) == without.expected(number) for number in found.numbers]
    assert all(same) if earlier else not any(same)


def test_ties_are_mutual(study):
    ties = {member["id"]: set(member["accuracy_ties"]) for member in study.document()["front"]}
    for one, others in ties.items():
        assert one not in others
        assert all(one in ties[other] for other in others)


def test_the_recommended_member_is_the_fastest_of_those_tied_with_the_best(study):
    document = study.document()
    members = {member["id"]: member for member in document["front"]}
    best = max(members.values(), key=lambda member: member["accuracy_expected"])
    tied = [best, *(members[number] for number in best["accuracy_ties"])]
    assert document["recommended"] == min(tied, key=lambda member: member["latency_ms"])["id"]


def test_the_recommendation_names_what_decided(study):
    front = study.snapshot()
    assert front.recommendation_note.startswith(f"recommended: trial {front.recommended}, the fastest one")
    recipe = {**front.recipe, "objectives": ["accuracy", "flops"]}
    counted = dataclasses.replace(front, settings={**front.settings, "recipe": recipe})
    assert "the one with the lowest FLOPs" in counted.recommendation_note


def test_how_the_search_ranks_is_said_or_that_it_is_not_known(study):
    front = study.snapshot()
    assert front.ranking_note.endswith("is not known: fewer than five were evaluated")
    known = dataclasses.replace(front, fidelity_tau={"value": 0.6, "low": 0.2, "high": 0.8})
    assert known.ranking_note.endswith("the true order of the networks after full training: 0.60 (0.20 to 0.80)")


def test_nothing_is_recommended_without_intervals(before):
    assert before.snapshot().recommendation_note == ""


def test_a_further_training_moves_the_belief(study):
    number = study.document()["front"][0]["id"]
    low, high = study.belief().interval(number)
    assert study.belief().expected(number) > 0.9
    record = {"resolution": 32, "epochs": 25, "seconds": 1.0, "accuracy": 0.8, "log_loss": 0.6}
    steps = [[8, 1, 1.0], [32, 25, 1.0]]
    study.record.set_user_attr(f"{RUNG}0:{number}", {**record, "steps": steps})
    after = records.load("real").belief()
    assert after.expected(number) == pytest.approx(0.8, abs=0.02)
    narrower = after.interval(number)
    assert narrower[1] - narrower[0] < high - low
    assert [training["steps"] for training in after.trainings(number)] == [steps]


def test_a_rung_that_became_the_last_one_counts_once(study):
    number = study.document()["front"][0]["id"]
    study.record.set_user_attr(f"{LAST_RUNG}{number}", None)
    record = {"resolution": 8, "epochs": 3, "seconds": 1.0, "accuracy": 0.9, "log_loss": 0.4}
    record["steps"] = [[8, 1, 1.0], [8, 3, 1.0]]
    study.record.set_user_attr(f"{RUNG}0:{number}", record)
    once = study.belief().interval(number)
    preprocessing = study.settings["data"]["preprocessing"]
    study.record.set_user_attr(f"{LAST_RUNG}{number}", {**record, "preprocessing": preprocessing})
    assert study.belief().interval(number) == once
    assert [training["epochs"] for training in study.belief().trainings(number)] == [3]


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(0.9, 10.0), (0.89, 2.0), (0.5, 1.0)], 1),
        ([(0.9, 10.0), (0.72, 5.5), (0.5, 1.0), (0.52, 5.0)], 1),  # the last lies on the wrong side of the line
        ([(0.9, 10.0), (0.55, 6.0), (0.5, 1.0)], 1),  # a concave front
        ([(0.9, 10.0), (0.5, 1.0)], None),
        ([(0.9, 5.0), (0.8, 6.0), (0.7, 1.0)], None),  # on the front by a third objective only
        ([(0.9, 1.0), (0.9, 1.0), (0.9, 1.0)], None),
    ],
)
def test_the_knee_is_farthest_from_the_line_between_the_ends(points, knee):
    class Member:
        def __init__(self, number, accuracy, latency):
            self.id, self.row = number, {"accuracy_expected": accuracy, "latency_ms": latency}

    class Few:
        objectives = ("accuracy", "latency")
        members = tuple(Member(i, *point) for i, point in enumerate(points))
        _column = Front._column

    assert Front.knee.fget(Few()) == knee


def test_the_probability_that_no_slower_network_is_better(study):
    belief = study.belief()
    first, *others = sorted(belief.numbers, key=belief.expected, reverse=True)
    assert belief.probability_of_best([first], others) > 0.5 > belief.probability_of_best(others[-1:], [first])
    assert belief.probability_of_best([first], []) is None
    assert 0 <= (study.snapshot().largest_is_best or 0) <= 1


def looked_at(accuracies: list[float], sizes: list[float]) -> StudyBelief:
    """The belief about trials 10, 11, ... after the same short training, judged on 1,000 images."""
    looks = [Look(i, "short", ((4.0, 1.0),), one, 1000) for i, one in enumerate(accuracies)]
    return StudyBelief(AccuracyBelief(sizes, looks, 25, 1000), range(10, 10 + len(looks)), {})


def test_the_probability_of_the_front_counts_costs_as_exact():
    belief = looked_at([0.80, 0.801, 0.60], [1e6, 1e6, 1e6])
    costs = {10: [2.0], 11: [1.0], 12: [3.0]}
    found = belief.probabilities_of_front(costs)
    assert found[11] == 1.0  # the cheapest
    assert 0.2 < found[10] < 0.5
    assert found[12] < 0.01
    assert found == belief.probabilities_of_front(costs)
    assert belief.probabilities_of_front(costs, least=0.2).keys() == {10, 11}
    assert belief.probabilities_of_front({12: [3.0]}) == {12: 1.0}  # others are over a limit
    assert belief.probabilities_of_front({}) == {}


def test_the_probability_of_the_front_of_accuracy_alone_is_that_of_the_best():
    found = looked_at([0.8, 0.8, 0.7], [1e6] * 3).probabilities_of_front({number: [] for number in (10, 11, 12)})
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[10] == pytest.approx(0.5, abs=0.1)


def test_probabilities_with_shared_weights_ignore_the_unknown_level():
    looks = [Look(i, "shared weights", (), one, 1000) for i, one in enumerate([0.30, 0.31, 0.10, 0.29, 0.28])]
    belief = StudyBelief(AccuracyBelief([1e6] * 5, looks, 25, 1000), range(5), {})
    found = belief.probabilities_of_front({i: [float(i)] for i in range(5)})
    assert found[0] == 1.0
    assert 0.2 < found[1] < 0.8
    assert found[2] < found[1]


@pytest.fixture
def dominated(study) -> records.Study:
    """A study whose trial 1 costs more than trial 0 and was a little less accurate after a further training."""
    for number, accuracy in ((0, 0.905), (1, 0.9)):
        record = {"resolution": 16, "epochs": 8, "seconds": 1.0, "accuracy": accuracy, "log_loss": 0.4}
        study.record.set_user_attr(f"{RUNG}0:{number}", {**record, "steps": [[8, 1, 1.0], [16, 8, 1.0]]})
    return records.load("real")


def test_networks_that_may_belong_to_the_front_are_listed_and_are_no_members(dominated):
    document, front = dominated.document(), dominated.snapshot()
    assert dominated.front_numbers() == [0]
    assert [member["id"] for member in document["front"]] == [0]
    (listed,) = document["may_belong"]
    assert listed["id"] == 1
    assert records.LEAST_PROBABLE <= listed["probability"] < 0.6
    probability = f"{listed['probability']:.0%}"
    assert front.may_belong_note == f"may also belong to the front after full training: trial 1 ({probability})"
    many = dataclasses.replace(front, may_belong={number: 0.9 - 0.1 * number for number in range(7)})
    assert many.may_belong_note.startswith("may also belong to the front after full training: trial 0 (90%), trial 1")
    assert many.may_belong_note.endswith("trial 4 (50%), and 2 more")
    assert dataclasses.replace(front, may_belong={}).may_belong_note == ""


def test_if_none_is_probable_those_are_listed_that_are_half_as_probable_as_a_member(dominated, monkeypatch):
    """As where many networks cost the same, so that none is likely to be the best."""
    found = {0: 0.3, 1: 0.16, 2: 0.14}

    def probabilities(self, costs, least=0.0, of=None):
        return {number: one for number, one in found.items() if one >= least and (of is None or number in of)}

    monkeypatch.setattr(StudyBelief, "probabilities_of_front", probabilities)
    assert dominated.snapshot().may_belong == {1: 0.16}
    found[0] = 0.01
    assert dominated.snapshot().may_belong == {1: 0.16, 2: 0.14}
    found[0] = 0.9
    assert dominated.snapshot().may_belong == {}
    found |= {0: 0.3, 1: 0.25}
    assert dominated.snapshot().may_belong == {1: 0.25}


def test_networks_that_were_not_trained_at_the_deployment_resolution_are_compared_too(dominated):
    dominated.record.set_user_attr(f"{DEPLOYED}1", None)
    undeployed = records.load("real")
    assert undeployed.front_numbers() == [0]
    assert [one["id"] for one in undeployed.document()["may_belong"]] == [1]
    dominated.record.set_user_attr(f"{DEPLOYED}1", {"failed": "out of memory"})
    assert records.load("real").document()["may_belong"] == []


def test_networks_over_a_limit_do_not_belong_to_the_front(dominated):
    latency = dominated.snapshot().members[0].row["latency_ms"]
    dominated.settings = {**dominated.settings, "limits": {"latency": latency * 1.1}}
    assert dominated.document()["may_belong"] == []


def test_members_are_not_listed_again(study):
    document = study.document()
    assert len(document["front"]) == 2
    assert document["may_belong"] == []


def test_nothing_may_belong_without_a_belief(before):
    assert before.document()["may_belong"] is None
    assert before.snapshot().may_belong_note == ""


def test_the_rank_correlation_of_many_networks_is_computed_from_some_of_them(monkeypatch):
    accuracies = [0.3 + 0.002 * i for i in range(300)]
    looks = [Look(i, "short", ((1.0, 1.0),), one, 300) for i, one in enumerate(accuracies)]
    belief = AccuracyBelief([1e6] * 300, looks, 25, 300)
    found = StudyBelief(belief, range(300), dict(enumerate(accuracies))).tau()
    monkeypatch.setattr("nasspace.studies.belief.MAX_NETWORKS", 300)
    exact = StudyBelief(belief, range(300), dict(enumerate(accuracies))).tau()
    assert found["value"] == pytest.approx(exact["value"], abs=0.05)


def test_the_belief_is_computed_again_only_after_a_training(study, monkeypatch):
    computed = []
    monkeypatch.setattr(records, "believe", lambda *arguments: computed.append(arguments) or believe(*arguments))
    first = study.belief()
    study.snapshot()
    study.promotion_order()
    assert study.belief() is first
    assert len(computed) == 1
    number = first.numbers[0]
    record = {"resolution": 8, "epochs": 4, "seconds": 1.0, "accuracy": 0.99, "log_loss": 0.1, "steps": [[8, 4, 1.0]]}
    study.record.set_user_attr(f"{RUNG}0:{number}", record)
    assert study.belief().expected(number) != first.expected(number)
    study.settings = {**study.settings, "belief": asdict(Prior(level=3.0))}
    study.belief()
    assert len(computed) == 3
