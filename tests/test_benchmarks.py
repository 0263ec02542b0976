"""The benchmarks' own arithmetic, on a clock that moves only when told to, and a smoke run."""

from __future__ import annotations

import gc
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tools
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks" / "runner.py").is_file():
    pytest.skip("needs the checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command_line  # noqa: E402
from benchmarks import accuracy, curves, ortho_conv, peers, runner  # noqa: E402
from benchmarks.runner import Contender, Session, Settings, Target  # noqa: E402
from lipfuse.demo.data import load_digits  # noqa: E402
from lipfuse.demo.settings import Settings as DemoSettings  # noqa: E402


class FakeClock:
    """Seconds that pass only where a contender says so; remembers who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float | Callable[[int], float]) -> Callable[[], None]:
        """A call of that name and duration; a function gets the number of calls before."""
        count = 0

        def call() -> None:
            nonlocal count
            self.now += seconds(count) if callable(seconds) else seconds
            count += 1
            self.runs.append(name)

        return call


def test_summary_of_samples() -> None:
    found = runner.summarise([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert (found.median, found.q1, found.q3, found.minimum) == (3.0, 2.0, 4.0, 1.0)
    assert (found.samples, found.calls) == (5, 7)
    assert found.spread == pytest.approx(2 / 3)
    single = runner.summarise([2.0])
    assert single.median == single.q1 == single.q3 == single.minimum == 2.0


@pytest.mark.parametrize(("samples", "rounds"), [(1, 1), (3, 10), (7, 7), (5, 300), (99, 100)])
def test_rounds_are_spread_evenly(samples: int, rounds: int) -> None:
    taken = [r for r in range(rounds) if runner.takes_part(r, samples, rounds)]
    assert len(taken) == samples
    gaps = {b - a for a, b in itertools.pairwise(taken)}
    assert len(gaps) <= 2
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("count", range(1, 8))
def test_nobody_runs_in_its_own_wake(count: int) -> None:
    ran: list[int] = []
    contenders = [Contender(str(i), partial(ran.append, i)) for i in range(count)]
    runner.measure(contenders, Settings(least=60, most=60, sample=0.0))
    timed = ran[-60 * count :]
    assert sorted(timed) == sorted(list(range(count)) * 60)
    wakes = set(itertools.pairwise(timed))
    assert len(wakes) == max(1, count * (count - 1))  # of every other, and of every one but its own


def test_contenders_take_turns_within_the_budget() -> None:
    clock = FakeClock()
    settings = Settings(budget=4.0, least=5, most=40, sample=1e-3)
    found = runner.measure(
        [
            Contender("quick", clock.takes("quick", 0.05)),
            Contender("slow", clock.takes("slow", 0.2)),
        ],
        settings,
        clock,
    )
    quick, slow = found["quick"], found["slow"]
    assert isinstance(quick, runner.Statistics)
    assert isinstance(slow, runner.Statistics)
    assert quick.median == pytest.approx(0.05)
    assert slow.median == pytest.approx(0.2)
    assert (quick.samples, slow.samples) == (40, 10)
    assert quick.calls == slow.calls == 1
    # In the timed part, the slow one runs once in every four rounds of the quick one.
    timed = clock.runs[-50:]
    for start in range(0, 50, 10):
        assert timed[start : start + 10].count("slow") == 2


def test_quick_calls_are_repeated_within_a_sample() -> None:
    clock = FakeClock()
    # Powers of two: the clock adds them up without rounding.
    settings = Settings(budget=0.01, least=3, most=4, sample=2**-14)
    found = runner.measure([Contender("tiny", clock.takes("tiny", 2**-17))], settings, clock)[
        "tiny"
    ]
    assert isinstance(found, runner.Statistics)
    assert found.calls == 8
    assert found.samples == 4
    assert found.median == 2**-17


def test_compiling_is_not_counted() -> None:
    clock = FakeClock()
    call = clock.takes("compiled", lambda count: 30.0 if count == 0 else 0.1)
    contender = Contender("compiled", call, slow_start=True)
    found = runner.measure([contender], Settings(), clock)["compiled"]
    assert isinstance(found, runner.Statistics)
    assert found.median == pytest.approx(0.1)


def test_who_is_not_measured_is_named() -> None:
    clock = FakeClock()

    def broken() -> None:
        raise RuntimeError("no such\nthing")

    found = runner.measure(
        [
            Contender("slow", clock.takes("slow", 9.0)),
            Contender("absent", None, "not installed"),
            Contender("broken", broken),
        ],
        Settings(patience=2.0),
        clock,
    )
    assert found == {
        "slow": "9.0 s a call, more than 2 s",
        "absent": "not installed",
        "broken": "failed: RuntimeError: no such",
    }
    with pytest.raises(RuntimeError, match="no such"):
        runner.measure([Contender("broken", broken, ours=True)], Settings(), clock)


def test_the_garbage_collector_rests_while_the_clock_runs() -> None:
    clock = FakeClock()
    states: list[bool] = []
    tick = clock.takes("one", 0.01)

    def call() -> None:
        tick()
        states.append(gc.isenabled())

    contender = Contender("one", call)
    assert gc.isenabled()
    runner.measure([contender], Settings(budget=0.1, least=3, most=3), clock)
    assert states[-3:] == [False] * 3
    assert gc.isenabled()


def test_ratios_floors_and_targets() -> None:
    clock = FakeClock()
    lines: list[str] = []
    session = Session(Settings(budget=1.0, least=3, most=3), clock, lines.append)
    session.begin("some", "a question")
    session.compare(
        "case",
        [
            Contender("ours", clock.takes("ours", 0.02), floor=((3.0, "unit"),)),
            Contender("peer", clock.takes("peer", 0.08), facts=lambda: {"error": 0.5}),
            Contender("other", clock.takes("other", 0.05)),
            Contender("absent", None, "not installed"),
            Contender("unit", clock.takes("unit", 0.005), yardstick=True),
        ],
        ours="ours",
        targets=[
            Target.faster("peer", "ours", 3.0),
            Target.faster(("peer", "other"), "ours", 3.0, "best of both"),
            Target.within("ours", "peer", 0.5),
            Target("floor", ("ours",), "floor", at_most=1.3),
            Target.faster("absent", "ours", 2.0),
        ],
        work=1e6,
    )
    (case,) = session.benchmarks[0]["cases"]
    by_name = {c["name"]: c for c in case["contenders"]}
    assert by_name["peer"]["ratio"] == pytest.approx(4.0)
    assert by_name["peer"]["facts"] == {"error": 0.5}
    assert by_name["ours"]["floor"] == pytest.approx(0.015)
    assert by_name["absent"] == {
        "name": "absent",
        "yardstick": False,
        "ours": False,
        "status": "not measured",
        "reason": "not installed",
    }
    assert case["flops_per_second"] == pytest.approx(2e8)
    assert [t["met"] for t in case["targets"]] == [True, False, True, False, None]
    assert case["targets"][1]["ratio"] == pytest.approx(2.5)
    assert case["targets"][1]["text"] == "best of both (other)"
    text = "\n".join(lines)
    assert "absent: not installed" in text
    assert "targets: 2 met, 2 missed, 1 open" in session.summary()


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (1.234e-3, "1.23 ms"), (5e-6, "5 us"), (3e-8, "30 ns")]
)
def test_times_are_shown_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert runner.show_time(seconds) == text


def test_matrices_have_the_spectrum_named() -> None:
    near = torch.linalg.svdvals(peers.matrix("near", 20, 30).double())
    assert float(near.min()) > 0.879
    assert float(near.max()) < 1.451
    assert torch.equal(peers.matrix("near", 20, 30), peers.matrix("near", 20, 30))
    deficient = torch.linalg.svdvals(peers.matrix("deficient", 10, 10).double())
    assert float(deficient[5]) < 1e-6 < float(deficient[4])
    assert peers.orthogonality_error(torch.eye(4)[:, :3] * 2) == pytest.approx(27**0.5)


@pytest.mark.parametrize("shape", [(9, 9), (12, 5), (5, 12)])
def test_errors_are_those_of_autograd(shape: tuple[int, int]) -> None:
    # The oracle's gradient, against autograd through a float64 decomposition.
    w, g = peers.matrix("near", *shape).double(), peers.matrix("gaussian", *shape).double()
    if shape[0] < shape[1]:
        w, g = w.mT, g.mT
    parameter = w.clone().requires_grad_()
    u, _, vh = torch.linalg.svd(parameter, full_matrices=False)
    torch.autograd.backward(u @ vh, g)
    oracle = accuracy.Oracle.of(w, g)
    assert parameter.grad is not None
    assert oracle.gradient_error(parameter.grad) < 1e-9
    assert oracle.gradient_error(1.5 * parameter.grad) == pytest.approx(0.5)
    assert oracle.factor_error((u @ vh).detach()) < 1e-12


def test_singular_values_by_fourier_are_those_of_the_map() -> None:
    kernel = torch.randn(4, 3, 3, 3) / 6
    layer = torch.nn.Conv2d(6, 4, 3, 2, 1, groups=2, bias=False, padding_mode="circular")
    layer.weight = torch.nn.Parameter(kernel)
    values = torch.linalg.svdvals(tools.dense(layer, (6, 4, 4)))
    found = ortho_conv.deviation(kernel, 2, 2, size=4)
    assert found == pytest.approx(float((values - 1).abs().max()), rel=1e-5)


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "record.json"
    arguments = ["weights", "--quick", "--case", "32x32", "--threads", "1", "--budget", "0.05"]
    with tools.threads(1):
        assert command_line.main([*arguments, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "32x32" in printed
    assert "torch.mm" in printed
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["machine"]["threads"] == 1
    assert set(found["versions"]) >= {"python", "torch", "lipfuse", "deel-torchlip", "orthogonium"}
    (case,) = found["benchmarks"][0]["cases"]
    names = {c["name"]: c for c in case["contenders"]}
    assert names["lipfuse"]["status"] == "measured"
    assert names["lipfuse"]["facts"]["‖QᵀQ-I‖"] < 1e-4
    # Installed or not, nobody is left out without a word.
    for peer in ("deel-torchlip", "orthogonium"):
        assert names[peer]["status"] == "measured" or names[peer]["reason"]


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["speed"])
    assert "there is no benchmark 'speed'" in capsys.readouterr().err


def test_training_curves_end_where_those_of_deel_torchlip_do() -> None:
    """A small network for some epochs: the difference of two such runs is mostly chance."""
    torchlip, reason = peers.deel()
    if torchlip is None:
        pytest.skip(f"deel-torchlip: {reason}")
    settings = DemoSettings(epochs=8, width=64, depth=2)
    digits = load_digits()
    before = [model(digits.test_images) for model in curves.pair(torchlip, settings)]
    assert torch.allclose(*before, atol=1e-4)
    outcome = curves.compare(torchlip, digits, settings)
    theirs, ours = outcome.histories
    assert ours.loss[0] == pytest.approx(theirs.loss[0], rel=0.03)
    assert min(h.test_accuracy[-1] for h in outcome.histories) >= 0.93
    assert abs(outcome.difference) <= 0.015
