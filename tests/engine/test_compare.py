"""`nasspace.compare` and `nas compare`: samples within a budget, what they say, and resuming."""

from __future__ import annotations

import json
import random
from xml.etree import ElementTree

import pytest

import nasspace
from nasspace import cost
from nasspace.cli import run
from nasspace.errors import InputError, NothingFound
from nasspace.samplers import uniform
from nasspace.space.space import Space
from nasspace.studies.study import load

SPACE = """
name: {name}
input: [3, 16, 16]
stages:
  - {{depth: [1, 2, 3], out: [8, 16], stride: 2, each: {{block: {block}}}}}
  - {{depth: [1, 2], out: [16, 24, 32], stride: 2, block: [sandglass: {{reduction: [2, 4]}}, shuffle_v2]}}
"""
CONV = SPACE.format(name="convs", block="{conv: {kernel: [1, 3, 5]}}")
FIRE = SPACE.format(name="fires", block="{fire: {squeeze: [0.125, 0.25], expand_3x3: [0.25, 0.5]}}")
BUDGET = {"flops": "100k..400k"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spaces():
    return [Space.from_text(CONV, "convs.yaml"), Space.from_text(FIRE, "fires.yaml")]


def scored(architecture):
    """Networks of convolutions are two points better."""
    noise = random.Random(architecture.digest).random()
    return {"accuracy": 0.8 + 0.02 * (architecture.layers[0].block == "conv") + 0.02 * noise}


def by_kernel(architecture):
    noise = random.Random(architecture.digest).random()
    kernel = next(option for name, option in architecture.choices.items() if name.endswith("kernel"))
    return {"accuracy": 0.8 + 0.01 * kernel + 0.02 * noise}


def test_the_better_space_wins_within_the_budget(spaces):
    found = nasspace.compare(spaces, budget=BUDGET, evaluator=scored, networks=15, study="c")
    assert found.winner == "convs"
    assert found.p_value < 0.01
    assert found.sentence.startswith("convs wins within FLOPs of 0.100 M to 0.400 M: the median error of convs is 2.")
    frame = found.frame()
    assert frame.groupby("space").size().to_dict() == {"convs": 15, "fires": 15}
    assert frame["flops"].between(100e3, 400e3).all()
    assert frame.groupby("space")["digest"].nunique().tolist() == [15, 15]
    picture = ElementTree.fromstring((found.folder / "distribution.svg").read_bytes())
    assert found.sentence in " ".join(picture.itertext())
    assert (found.folder / "distribution.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    document = json.loads((found.folder / "comparison.json").read_text())
    assert document == json.loads(json.dumps(found.document()))
    assert document.keys() >= {"budget", "spaces", "winner", "p_value", "sentence"}
    keys = ("name", "evaluated", "median_error", "best_error", "hypervolume", "hypervolume_low", "hypervolume_high")
    assert set(keys) <= document["spaces"][0].keys()
    for space in document["spaces"]:
        assert 0 <= space["hypervolume_low"] <= space["hypervolume"] <= space["hypervolume_high"] <= 1


def test_equal_spaces_have_no_winner_and_the_sentence_says_how_many_networks_could_tell(spaces):
    found = nasspace.compare(
        spaces, budget=BUDGET, evaluator=lambda one: {"accuracy": random.Random(one.digest).random()}, networks=8
    )
    assert found.winner is None
    assert found.folder.name == "convs-vs-fires"
    assert "8 networks of each cannot tell convs and fires apart" in found.sentence
    assert "networks of each would tell" in found.sentence


def test_a_stopped_comparison_is_resumed_by_the_same_call(spaces):
    whole = nasspace.compare(spaces, budget=BUDGET, evaluator=scored, networks=6, study="whole")
    calls = []

    def stopped(architecture):
        calls.append(architecture.digest)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return scored(architecture)

    stopped.__qualname__ = "scored"
    with pytest.raises(KeyboardInterrupt):
        nasspace.compare(spaces, budget=BUDGET, evaluator=stopped, networks=6, study="s")
    resumed = nasspace.compare(spaces, budget=BUDGET, evaluator=stopped, networks=6, study="s")
    assert len(calls) == 13
    assert resumed.frame().equals(whole.frame())
    assert {**resumed.document(), "comparison": ""}["differences"] == whole.document()["differences"]
    larger = nasspace.compare(spaces, budget=BUDGET, evaluator=stopped, networks=8, study="s")
    assert len(calls) == 17
    assert larger.frame()["digest"].isin(resumed.frame()["digest"]).sum() == 12
    with pytest.raises(InputError, match=r"budget is .*choose another --study name"):
        nasspace.compare(spaces, budget={"flops": "100k..500k"}, evaluator=stopped, study="s")
    with pytest.raises(InputError, match=r"seed is 0, now 1; choose another --study name"):
        nasspace.compare(spaces, budget=BUDGET, evaluator=stopped, networks=6, study="s", seed=1)
    record = (larger.folder / "comparison.yaml").read_bytes()
    with pytest.raises(InputError, match=r"with the evaluator scored, now it is with the evaluator by_kernel"):
        nasspace.compare(spaces, budget=BUDGET, evaluator=by_kernel, networks=9, study="s")
    assert (larger.folder / "comparison.yaml").read_bytes() == record, "a refused comparison changes nothing"


def test_a_damaged_or_newer_comparison_yaml_is_one_message_with_a_remedy(spaces):
    how = {"budget": BUDGET, "evaluator": scored, "networks": 2, "study": "s"}
    path = nasspace.compare(spaces, **how).folder / "comparison.yaml"
    text = path.read_text()
    path.write_text(text.replace("nasspace_comparison: 1", "nasspace_comparison: 2") + "new_key: 5\n")
    newer = path.read_bytes()
    with pytest.raises(InputError, match="comparison of version 2; this nasspace reads version 1: update nasspace"):
        nasspace.compare(spaces, **how)
    assert path.read_bytes() == newer
    for length in (0, 5, 24, 40, text.index("budget:") + 12, text.index("recipe:") + 9, text.index("machine:")):
        path.write_text(text[:length])
        with pytest.raises(InputError, match=r"comparison\.yaml.*delete it: the same command writes it again"):
            nasspace.compare(spaces, **how)
    path.unlink()
    assert nasspace.compare(spaces, **how).folder.joinpath("comparison.yaml").read_text().startswith("nasspace_com")


def test_names_that_differ_in_punctuation_only_are_studies_of_their_own(spaces):
    names = ("my net", "my-net", "=()")
    named = [Space.from_text(CONV.replace("name: convs", f"name: '{name}'"), "convs.yaml") for name in names]
    found = nasspace.compare(named, budget=BUDGET, evaluator=scored, networks=2, study="c")
    assert [group.study.name for group in found.groups] == ["my-net", "my-net-2", "space"]
    again = nasspace.compare(named[::-1], budget=BUDGET, evaluator=scored, networks=2, study="c")
    assert sorted(map(str, again.rows())) == sorted(map(str, found.rows()))


@pytest.mark.parametrize("command", [["front"], ["report"], ["report", "--check"], ["resume"], ["export"]])
def test_a_comparison_is_no_study_but_names_those_that_it_holds(spaces, command, capsys):
    nasspace.compare(spaces, budget=BUDGET, evaluator=scored, networks=2, study="my nets")
    assert run([*command, "my nets:front" if command == ["export"] else "my nets"]) == 2
    studies = "'reports/my nets/convs', 'reports/my nets/fires'"
    message = f"nas: reports/my nets: a comparison, not a study; its studies are {studies}\n"
    assert capsys.readouterr().err == message
    assert run(["resume", "reports/my nets/convs"]) == 2
    assert "nasspace.compare(..., evaluator=..., study='reports/my nets')" in capsys.readouterr().err


def test_options_are_compared_by_pairs(spaces):
    found = nasspace.compare(
        spaces[0], budget={"flops": "50k..900k"}, vary="stages.*.kernel", evaluator=by_kernel, networks=10
    )
    assert [group.name for group in found.groups] == ["kernel 1", "kernel 3", "kernel 5"]
    assert found.winner == "kernel 5"
    assert len(found.pairs) == 10
    assert "10 sets of networks" in found.sentence
    frame = found.frame()
    studies = {group.name: load(group.study) for group in found.groups}
    for _, rows in frame.groupby("pair"):
        choices = [studies[row.space].frozen()[row.id].params for row in rows.itertuples()]
        rest = [{key: value for key, value in one.items() if not key.endswith("kernel")} for one in choices]
        assert rest[0] == rest[1] == rest[2]
        kernels = [{value for key, value in one.items() if key.endswith("kernel")} for one in choices]
        assert kernels == [{1}, {3}, {5}]


def test_networks_outside_of_a_latency_budget_are_rejected_and_not_compared(spaces, monkeypatch):
    def measured(architecture):
        return {**scored(architecture), "latency": cost(architecture).flops / 1e5}

    found = nasspace.compare(spaces, budget={"latency": (1.0, 4.0)}, evaluator=measured, networks=6)
    assert found.frame()["latency_ms"].between(1.0, 4.0).all()
    assert all(len(group.networks) == 6 for group in found.groups)
    assert sum(group.rejected for group in found.groups) > 0
    monkeypatch.setattr(uniform, "MAX_REJECTED", 20)
    with pytest.raises(NothingFound, match=r"no network within the budget was found among 20 measured; .* outside"):
        nasspace.compare(spaces, budget={"latency": (1e6, 2e6)}, evaluator=measured, study="none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": {}}, "name a cost and its range"),
        ({"budget": {"flop": (1, 2)}}, "'flop' is not a cost; did you mean 'flops'"),
        ({"budget": {"flops": "2M"}}, "'2M' is not a range such as 40M..60M"),
        ({"budget": {"flops": "4M..2M"}}, "the first amount is above the second"),
        ({"budget": {"latency": "2..4"}}, "has no unit"),
        ({"vary": "stages.*.kernel"}, "compares networks of one space; 2 are given"),
        ({"networks": 1}, "networks: 1 is too few to compare"),
        ({"networks": "x"}, "'x' is not allowed"),
        ({"budget": 5}, "a budget is a mapping such as"),
        ({"budget": {"flops": (1, None)}}, "'None' is not an amount"),
        ({"vary": 5}, "vary: 5 is not a pattern"),
        ({"recipe": "supernet"}, "choose another recipe"),
    ],
)
def test_mistakes_are_refused(spaces, arguments, message):
    with pytest.raises(InputError, match=message):
        nasspace.compare(spaces, **{"budget": BUDGET, "evaluator": scored, **arguments})


def test_spaces_need_two_names_and_networks_within_the_budget(spaces):
    with pytest.raises(InputError, match="two spaces or more; or one, with --vary"):
        nasspace.compare(spaces[0], budget=BUDGET, evaluator=scored)
    with pytest.raises(InputError, match="5 is not a"):
        nasspace.compare([5, 6], budget=BUDGET, evaluator=scored)
    with pytest.raises(InputError, match="two spaces have the name 'convs'"):
        nasspace.compare([spaces[0]] * 2, budget=BUDGET, evaluator=scored)
    with pytest.raises(NothingFound, match="no networks of 'convs' within the budget were found; the space has FLOPs"):
        nasspace.compare(spaces, budget={"flops": (1, 2)}, evaluator=scored)


@pytest.mark.slow
def test_networks_are_trained_and_the_command_prints_the_document(tmp_path, capsys):
    (tmp_path / "convs.yaml").write_text(CONV)
    (tmp_path / "fires.yaml").write_text(FIRE)
    (tmp_path / "short.yaml").write_text("fidelity: {resolution: 8, epochs: 1}")
    arguments = ["compare", "convs.yaml", "fires.yaml", "--budget", "flops=10k..400k,params=100..1M", "--networks", "2"]
    assert run([*arguments, "--data", "digits", "--recipe", "short.yaml", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [space["evaluated"] for space in document["spaces"]] == [2, 2]
    assert document["budget"] == {"flops": [10e3, 400e3], "params": [100, 1e6]}
    page = (tmp_path / "reports" / "convs-vs-fires" / "comparison.html").read_text()
    assert document["sentence"][:40] in page
    assert "Plotly.newPlot" in page


@pytest.mark.parametrize(
    ("budget", "message"),
    [("flops", "is not a cost and its range"), ("flops=1M", "--budget: flops: '1M' is not a range"), ("x=1..2", "'x'")],
)
def test_a_wrong_budget_is_one_message(budget, message, capsys):
    assert run(["compare", "shuffle", "mobile", "--budget", budget]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
