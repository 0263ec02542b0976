"""What is made of the benchmarks' records: comparisons, tables, pictures, pages."""

from __future__ import annotations

import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "runner.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    compare,
    plots,
    race_networks,
    races,
    records,
    report,
    steps,
    tables,
    time_to_accuracy,
    weights,
)
from benchmarks.tables import Sources  # noqa: E402
from lipfuse.demo.data import DigitsNotFoundError  # noqa: E402


def contender(name: str, median: float, spread: float = 0.02, **more: Any) -> dict[str, Any]:
    """Of a record."""
    half = spread * median / 2
    return {
        **{"name": name, "yardstick": False, "ours": name.startswith("lipfuse")},
        **{"status": "measured", "median": median, "q1": median - half, "q3": median + half},
        **{"minimum": median - half, "samples": 9, "calls": 1, "ratio": 1.0, "floor": None},
        **{"facts": {}, **more},
    }


def case(name: str, contenders: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Of a record; the first contender is what the others are compared to."""
    about = {"unit": "s", "shape": [64, 64], "compared_to": contenders[0]["name"]}
    return {"name": name, **about, "contenders": contenders, "targets": [], **more}


def record(**benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """A run of these benchmarks."""
    machine = {"cpu": "some", "cores": 2, "threads": 2, "instruction_set": "avx2"}
    return {
        "schema": records.SCHEMA,
        "finished": "2026-01-01T00:00:00Z",
        "seconds": 60.0,
        "machine": machine,
        "versions": dict.fromkeys(("torch", "deel-torchlip", "orthogonium"), "1"),
        "settings": {"quick": False},
        "targets": [],
        "benchmarks": [{"name": name, "cases": found} for name, found in benchmarks.items()],
    }


NAMES = ("lipfuse", "peer", "other", "torch.mm")


def simple(**times: float) -> dict[str, Any]:
    """Two cases: all in the first, ours alone in the second; a second each but for those named."""
    first = [contender(name, times.get(name.replace(".", ""), 1.0)) for name in NAMES]
    return record(
        some=[case("a", first), case("b", [contender("lipfuse", times.get("alone", 1.0))])]
    )


def compared(tmp_path: Path, old: dict[str, Any], new: dict[str, Any], *arguments: str) -> int:
    """What the command says."""
    paths = []
    for name, found in (("old", old), ("new", new)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(found), encoding="utf-8")
    return compare.main([*map(str, paths), *arguments])


def test_the_same_run_is_not_slower(tmp_path: Path) -> None:
    assert compared(tmp_path, simple(), simple()) == 0


def test_a_slower_machine_is_not_a_slower_library(tmp_path: Path) -> None:
    everybody = dict.fromkeys(("lipfuse", "peer", "other", "torchmm", "alone"), 1.7)
    assert compared(tmp_path, simple(), simple(**everybody)) == 0
    # And a quicker machine hides nothing: ours stayed where it was.
    assert compared(tmp_path, simple(), simple(peer=0.6, other=0.6, torchmm=0.6)) == 1


@pytest.mark.parametrize("who", ["lipfuse", "alone"])
def test_a_slow_down_is_found(who: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(tmp_path, simple(), simple(**{who: 1.2})) == 1
    assert "some, " + {"lipfuse": "a", "alone": "b"}[who] + ": lipfuse" in capsys.readouterr().out
    assert compared(tmp_path, simple(), simple(**{who: 1.2}), "--tolerance", "0.3") == 0
    assert compared(tmp_path, simple(**{who: 1.2}), simple()) == 0


def test_noise_that_the_runs_measured_is_forgiven(tmp_path: Path) -> None:
    new = simple(lipfuse=1.2)
    new["benchmarks"][0]["cases"][0]["contenders"][0] = contender("lipfuse", 1.2, spread=0.3)
    assert compared(tmp_path, simple(), new) == 0
    assert compared(tmp_path, new, simple(lipfuse=1.44)) == 0
    # Three that changed by -20, 0 and +20 % say that 20 % mean nothing.
    assert compared(tmp_path, simple(), simple(lipfuse=1.2, peer=0.8, torchmm=1.2)) == 0


def test_memory_is_compared_as_it_is(tmp_path: Path) -> None:
    def run(ours: float, peer: float) -> dict[str, Any]:
        found = [contender("lipfuse", ours, 0.0), contender("peer", peer, 0.0)]
        return record(memory=[case("a", found, unit="bytes")])

    assert compared(tmp_path, run(1e6, 1e6), run(1e6, 5e5)) == 0
    assert compared(tmp_path, run(1e6, 1e6), run(1.2e6, 1e6)) == 1
    # Memory that others need more or less of for no reason is noise, not the machine's drift.
    assert compared(tmp_path, run(1e6, 1e6), run(1.1e6, 0.9e6)) == 0
    assert compared(tmp_path, run(1e6, 1e6), run(1.3e6, 1.1e6)) == 1


def test_what_is_no_longer_measured_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = simple()
    new["benchmarks"][0]["cases"][0]["contenders"][0].update(status="not measured", reason="slow")
    assert compared(tmp_path, simple(), new) == 1
    assert "no longer measured: some, a: lipfuse" in capsys.readouterr().out


def test_runs_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = simple()
    other["machine"]["threads"] = 1
    assert compared(tmp_path, simple(), other) == 2
    assert "threads: 2 and 1" in capsys.readouterr().out
    assert compared(tmp_path, simple(), other, "--anyway") == 0
    assert compared(tmp_path, simple(), record(), "--anyway") == 2
    for wrong in ({"schema": records.SCHEMA}, {**simple(), "schema": 1}):
        with pytest.raises(SystemExit):
            compared(tmp_path, simple(), wrong)
    assert "run it again" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compared(tmp_path, simple(), simple(), "--tolerance", "-1")


# ---- tables and pictures -------------------------------------------------------------------------


def races_of(*seconds: dict[str, float | None]) -> dict[str, Any]:
    """A record of races in which the libraries reached the level after so many seconds."""
    runs = []
    for seed, found in enumerate(seconds):
        racers = [
            {
                "name": name,
                "status": "measured",
                "step": {"median": 0.01},
                "curve": [[0.0, 0.1, 0.0], [9.0, 0.97, 0.5]],
                "reached": [{"level": 0.4, "epoch": end and 1, "seconds": end}],
            }
            for name, end in found.items()
        ]
        runs.append({"network": "dense", "seed": seed, "contenders": racers})
    settings = {"levels": {"dense": [0.4]}, "threads": 1, "radius": 0.5}
    return {"schema": 1, "machine": {"cpu": "some"}, "settings": settings, "runs": runs}


def sources(
    run: dict[str, Any],
    race: dict[str, Any] | None = None,
    other: dict[str, Any] | None = None,
    avx2: dict[str, Any] | None = None,
    half: dict[str, Any] | None = None,
) -> Sources:
    """Records that are in no file."""
    paths = [Path(f"{name}.json") for name in ("run", "races", "other", "avx2", "half")]
    others = [found or record() for found in (other, avx2, half)]
    return Sources(*paths, run, race or races_of(), *others)


def lines(text: str) -> list[str]:
    """Of a table, without its heading, and with plain spaces."""
    return text.replace("\u00a0", " ").splitlines()[2:]


def test_ratios_of_races_are_those_of_the_same_seed() -> None:
    found = races_of(
        {"lipfuse": 2.0, "deel-torchlip": 8.0, "orthogonium": 9.0},
        {"lipfuse": 4.0, "deel-torchlip": 24.0, "orthogonium": None},
    )
    (goal,) = races.goals(found)
    assert goal.ratios("deel-torchlip") == [4.0, 6.0]
    # One seed that did not arrive leaves no mean of those that did.
    assert goal.ratios("orthogonium") == []
    text = tables.time_to_accuracy(sources(record(), found)).replace("\u00a0", " ")
    assert "| dense | 40% | deel-torchlip | 10 ms | 1, 1 | 16.00 ± 11.31 s | 5.0 ± 1.4x |" in text
    assert "| dense | 40% | orthogonium | 10 ms | not reached | – | – |" in text


def test_peers_that_are_ahead_are_named() -> None:
    run = record(
        layers=[case("l", [contender("lipfuse", 2.0), contender("deel-torchlip", 1.0)])],
        activations=[
            case(
                "a",
                [
                    contender("ReLU", 1.0),
                    contender("lipfuse GroupSort2", 2.0),
                    contender("deel-torchlip GroupSort2", 1.5),
                    contender("deel-torchlip MaxMin", 0.5),
                ],
            )
        ],
        steps=[case("s", [contender("lipfuse", 2.0), contender("plain, ReLU", 1.0)])],
        weights=[
            case(
                "w",
                [
                    contender("lipfuse", 2.0),
                    contender("orthogonium", 1.8),
                    contender("torch orthogonal, cayley", 1.6),
                    contender("torch orthogonal, householder", 3.0),
                    contender("torch.mm, n x n x n", 0.1, yardstick=True),
                ],
            )
        ],
    )
    expected = [
        "| `layers`, l | deel-torchlip | lipfuse | 0.50x |",
        "| `activations`, a | deel-torchlip GroupSort2 | lipfuse GroupSort2 | 0.75x |",
        "| `weights`, w | orthogonium | lipfuse | 0.90x |",
        "| `weights`, w | torch orthogonal, cayley | lipfuse | 0.80x |",
    ]
    assert lines(tables.peers_ahead(sources(run))) == expected
    assert tables.other_peers_ahead(sources(run)) == "None in this run."
    assert lines(tables.other_peers_ahead(sources(record(), other=run))) == expected
    assert tables.peers_ahead(sources(record(), other=run)) == "None in this run."


def test_floors_are_at_the_best_rate_there_is() -> None:
    def floor(own: float) -> float | None:
        found = [
            contender(weights.OURS, 1.0, floor=0.8),
            contender(weights.SMALL, 0.1, yardstick=True),
            contender(weights.OWN, own, yardstick=True),
        ]
        run = record(weights=[case("w", found)])
        return tables.least(sources(run), records.cases(run, "weights")[0])

    assert floor(0.1) == pytest.approx(0.4)  # two threads of the native product: twice torch's rate
    assert floor(0.4) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC", "AMD EPYC"),
        ("Intel(R) Xeon(R) Processor", "Intel Xeon"),
        ("Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz", "Intel Xeon Platinum 8581C"),
        ("AMD EPYC 9B45 64-Core Processor", "AMD EPYC 9B45 64-Core"),
    ],
)
def test_processors_have_short_names(model: str, name: str) -> None:
    assert records.processor({"machine": {"cpu": model}}) == name


def weight(name: str, *, own: float, product: float, **more: float) -> dict[str, Any]:
    """A contest of one orthogonal weight: milliseconds, with rates of torch's product and ours."""
    found = [
        contender(weights.OURS, 1e-3 * more["ours"]),
        contender(weights.DEEL, 1e-3 * more["deel"]),
        contender(weights.map_name("cayley"), 1e-3 * more["cayley"]),
        contender(weights.map_name("householder"), 1e-3 * more["householder"]),
        contender(weights.SMALL, 1e-3 * product, yardstick=True),
        contender(weights.OWN, 1e-3 * own, yardstick=True),
    ]
    shape = [int(size) for size in name.split()[0].split("x")]
    return case(name, found, shape=shape, spectrum="gaussian" if " " in name else "near")


def two_processors() -> Sources:
    """The same weight on two of them, and what only the first has."""
    first = weight(
        "256x256", own=0.5, product=1.0, ours=5.0, deel=30.0, cayley=20.0, householder=40.0
    )
    second = weight(
        "256x256", own=1.0, product=0.5, ours=10.0, deel=15.0, cayley=12.0, householder=8.0
    )
    alone = [
        weight(name, own=1.0, product=1.0, ours=1.0, deel=2.0, cayley=3.0, householder=4.0)
        for name in ("512x512", "64x576", "256x256 gaussian")
    ]
    activations = [contender("ReLU", 2.0), contender("lipfuse GroupSort2", 1.0)]
    step = [contender(steps.FUSED, 2.0), contender(steps.PLAIN, 1.0)]
    run = record(
        weights=[first, *alone],
        steps=[case("net", step)],
        activations=[case("activations, contiguous", activations), case("pooling", activations)],
    )
    other = record(weights=[second], steps=[case("net", [contender(steps.FUSED, 1.0), step[1]])])
    other["machine"] = {**run["machine"], "cpu": "Other(R) CPU @ 2.0GHz"}
    return sources(run, other=other)


def test_two_processors_are_side_by_side() -> None:
    found = two_processors()
    text = tables.processors(found)
    assert text.splitlines()[0] == "| some / Other | lipfuse | deel-torchlip | beside | takes |"
    # The quickest map is that of each processor; all is relative to ours on the same one.
    square = "an orthogonal weight, 256x256"
    assert lines(text) == [
        f"| {square} | 5 ms / 10 ms | 6.0x / 1.5x | torch, best map | 4.0x / 0.80x |",
        "| an orthogonal weight, 512x512 | 1 ms / – | 2.0x / – | torch, best map | 3.0x / – |",
        "| an orthogonal weight, 64x576 | 1 ms / – | 2.0x / – | torch, best map | 3.0x / – |",
        f"| {square} gaussian | 1 ms / – | 2.0x / – | torch, best map | 3.0x / – |",
        "| a training step, net | 2 s / 1 s | – | unconstrained | 0.50x / 1.0x |",
        "| GroupSort2, contiguous | 1 s / – | – | ReLU | 2.0x / – |",
    ]
    assert lines(tables.headline(found))[:2] == [
        f"| {square} | 5 ms / 10 ms | 6.0x / 1.5x | – | 4.0x / 0.80x | – |",
        "| an orthogonal weight, 512x512 | 1 ms / – | 2.0x / – | – | 3.0x / – | – |",
    ]


def test_rates_are_of_square_products() -> None:
    # 2 x 256^3 operations in 1 and 0.5 ms; contenders in products of the same processor.
    assert lines(tables.rates(two_processors())) == [
        "| 256x256 | 34 / 67 (2.0x) | 67 / 34 (0.50x) | 5 / 20 | 30 / 30 | 20 / 16 |",
        "| 512x512 | 268 / – | 268 / – | 1 / – | 2 / – | 3 / – |",
    ]


def test_the_other_source_counts_its_own_targets() -> None:
    found = two_processors()
    found.other["targets"] = [{"met": True}, {"met": False}, {"met": None}]
    text = tables.other_source(found)
    assert text.startswith("From `other.json`, a run of 60 s that finished ")
    assert "Other(R) CPU @ 2.0GHz, 2 cores" in text
    assert text.endswith("; torch 1, deel-torchlip 1, orthogonium 1. 1 of 2 targets were met.")


def test_a_third_processor_has_tables_of_its_own() -> None:
    found = two_processors()
    third = sources(found.run, other=found.other, avx2=found.other)
    assert tables.TABLES["narrow weights"](third) == tables.one_weight(sources(found.other))
    assert tables.TABLES["narrow steps"](third) == tables.whole_steps(sources(found.other))
    assert "`avx2.json`" in tables.TABLES["narrow source"](third)
    assert tables.headline(third) == tables.headline(found)


def test_a_fourth_processor_has_them_too() -> None:
    found = two_processors()
    fourth = sources(found.run, half=found.other)
    assert tables.TABLES["half weights"](fourth) == tables.one_weight(sources(found.other))
    assert "`half.json`" in tables.TABLES["half source"](fourth)
    assert tables.headline(fourth) == tables.headline(sources(found.run))


def test_the_parts_of_a_step_are_differences() -> None:
    found = [
        contender(steps.FUSED, 10.0),
        contender(steps.DEEL, 30.0),
        contender(steps.DEEL_SORTED, 9.0),
        contender(steps.SORTED, 7.0),
        contender(steps.PLAIN, 6.0),
        contender(steps.BARE, 5.0),
    ]
    one = records.Case(case("s", found))
    assert list((plots.parts(one, steps.FUSED) or {}).values()) == [5.0, 2.0, 3.0]
    assert list((plots.parts(one, steps.DEEL) or {}).values()) == [5.0, 4.0, 21.0]
    assert list((plots.parts(one, steps.PLAIN) or {}).values()) == [5.0, 1.0, 0.0]
    assert plots.parts(one, steps.ORTHOGONIUM) is None
    assert sum((plots.parts(one, steps.DEEL) or {}).values()) == 30.0


def test_pages_keep_what_is_not_a_table() -> None:
    found = sources(record())
    page = "before\n<!-- table: source -->\nold\n<!-- end of table -->\nafter\n"
    filled = report.fill(page, found)
    assert filled.startswith("before\n<!-- table: source -->\n\nFrom `")
    assert filled.endswith("\n\n<!-- end of table -->\nafter\n")
    assert "old" not in filled
    assert report.fill(filled, found) == filled
    with pytest.raises(ValueError, match="there is no table 'speed'"):
        report.fill(page.replace("source", "speed"), found)
    with pytest.raises(ValueError, match="1 tables begin and 0 end"):
        report.fill(page.replace("<!-- end of table -->", ""), found)


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_run_of_a_part_makes_shorter_tables(name: str) -> None:
    assert tables.TABLES[name](sources(record(), races_of({"lipfuse": 1.0})))


# ---- what is committed ---------------------------------------------------------------------------


def test_documentation_shows_the_committed_records() -> None:
    assert [path.name for path in report.out_of_date(Sources.of())] == []
    assert ROOT / "docs" / "performance.md" in report.pages()


def test_documentation_that_shows_others_is_found(tmp_path: Path) -> None:
    committed = Sources.of()
    run = copy.deepcopy(committed.run)
    run["seconds"] += 1
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run), encoding="utf-8")
    stale = {found.name for found in report.out_of_date(Sources.of(path, committed.races_path))}
    assert stale == {"performance.md", *(f"{name}.png" for name in plots.PLOTS)}


def test_another_processor_changes_tables_and_no_pictures(tmp_path: Path) -> None:
    committed = Sources.of()
    other = copy.deepcopy(committed.other)
    for found in records.cases(other, "weights"):
        found.contenders[weights.OURS]["median"] /= 2
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other), encoding="utf-8")
    shown = Sources.of(committed.run_path, committed.races_path, path)
    assert {page.name for page in report.out_of_date(shown)} == {"README.md", "performance.md"}


COMMITTED = (records.RUN, records.OTHER, records.AVX2, records.HALF)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_records_are_of_full_runs_and_say_where_they_stand(path: Path) -> None:
    found = records.load(path)
    assert found["command"] == [
        *("python", "-m", "benchmarks", "--json"),
        path.relative_to(ROOT).as_posix(),
    ]
    assert not found["settings"]["quick"]


@pytest.mark.parametrize("path", COMMITTED[1:], ids=lambda path: path.name)
def test_records_differ_in_the_processor_alone(path: Path) -> None:
    run, other = records.load(records.RUN), records.load(path)
    same = run["machine"]["instruction_set"] == other["machine"]["instruction_set"]
    assert same == (path == records.HALF)
    assert run["versions"] == other["versions"]
    assert run["settings"] == other["settings"]
    assert run["machine"]["threads"] == other["machine"]["threads"]
    for found in run["benchmarks"]:
        names = [case.name for case in records.cases(run, found["name"])]
        assert names == [case.name for case in records.cases(other, found["name"])]


def test_what_the_page_says_of_another_processor_is_so() -> None:
    """The sentences of that section which have no figures: they hold for the committed records."""
    found = Sources.of()

    def change(pair: tuple[records.Case, records.Case | None], name: str, of: str) -> float:
        first, second = ((case and case.median(name), case and case.median(of)) for case in pair)
        assert first[0] and first[1] and second[0] and second[1]
        return (second[0] / second[1]) / (first[0] / first[1])

    def of_sizes(*sizes: int) -> list[tuple[records.Case, records.Case | None]]:
        names = [f"{n}x{n}" for n in sizes]
        chosen = [pair for pair in found.pairs("weights") if pair[0].name in names]
        assert len(chosen) == len(names)
        return chosen

    large = of_sizes(512, 1024)
    for pair in large:
        first, second = (
            {name: case.median(name) or 0.0 for name in case.contenders} if case else {}
            for case in pair
        )
        # All of MKL's threads against one of the native kernel.
        assert first[weights.SMALL] > first[weights.OWN]
        assert second[weights.SMALL] < second[weights.OWN]
        # Large products of ours take about as long, MKL's gain.
        assert 0.75 < second[weights.OWN] / first[weights.OWN] < 1.25
        assert second[weights.SMALL] < first[weights.SMALL]
        assert (
            second[weights.SMALL] / first[weights.SMALL] < second[weights.OWN] / first[weights.OWN]
        )
        # deel-torchlip takes about as many of MKL's products on both.
        assert 0.75 < change(pair, weights.DEEL, weights.SMALL) < 1.33
    for first_case, second_case in of_sizes(32, 64):  # small ones of ours are slower
        own = [case and case.median(weights.OWN) for case in (first_case, second_case)]
        assert own[0] and own[1] and own[1] > own[0]
    of_products = statistics.geometric_mean(change(p, weights.DEEL, weights.OURS) for p in large)
    assert of_products < 1


def test_pictures_are_drawn_from_committed_records(tmp_path: Path) -> None:
    drawn = plots.draw(Sources.of(), tmp_path)
    assert [path.name for path in drawn] == [f"{name}.png" for name in plots.PLOTS]
    source = records.digest(records.RUN, records.RACES)
    assert {plots.drawn_from(path) for path in drawn} == {source}


def test_races_are_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "races.json"
    arguments = ["--quick", "--seed", "0", "--json", str(path)]
    try:
        assert time_to_accuracy.main(arguments) == 0
    except DigitsNotFoundError as error:
        pytest.skip(str(error))
    found = {run["network"]: run for run in races.load(path)["runs"]}
    assert set(found) == {race_networks.DENSE, race_networks.CONVOLUTIONAL}
    for run in found.values():
        ours = run["contenders"][0]
        assert ours["status"] == "measured"
        assert ours["curve"][-1][1] > 0.5
        assert ours["reached"][0]["epoch"] == 0
        assert {c["name"] for c in run["contenders"]} == set(race_networks.NAMES)
    assert found[race_networks.DENSE]["apart_at_start"] < 1e-4
    assert found[race_networks.CONVOLUTIONAL]["contenders"][0]["reached"][1]["seconds"] is None
    capsys.readouterr()
    assert time_to_accuracy.main(arguments) == 0
    assert "dense, seed 0: there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        time_to_accuracy.main([*arguments[1:]])
    assert "has other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        time_to_accuracy.main(["--quick"])
    assert "--quick needs a --json of its own" in capsys.readouterr().err
