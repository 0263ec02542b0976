from __future__ import annotations

from pathlib import Path

import pytest

from lipfuse.demo.settings import Settings, parse


def test_defaults() -> None:
    assert parse([]) == Settings()


def test_everything_can_be_set() -> None:
    text = (
        "--epochs 3 --batch-size 7 --lr 0.1 --width 8 --depth 2 --loss hkr --alpha 0.5 --tau 3"
        " --min-margin 0.5 --seed 9 --threads 1 --output somewhere"
    )
    settings = parse(text.split())
    assert settings == Settings(
        epochs=3, batch_size=7, lr=0.1, width=8, depth=2, loss="hkr", alpha=0.5, tau=3.0,
        min_margin=0.5, seed=9, threads=1, output=Path("somewhere"),
    )  # fmt: skip


def test_quick_leaves_what_was_asked_for() -> None:
    settings = parse(["--quick", "--epochs", "7"])
    assert settings.quick and settings.epochs == 7
    assert settings.width == Settings().hurried().width < Settings().width


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ("--epochs 0", "an integer >= 1"),
        ("--epochs 2.5", "an integer >= 1"),
        ("--batch-size -1", "an integer >= 1"),
        ("--width 7", "an even integer >= 2"),
        ("--lr nan", "a positive number"),
        ("--lr 0", "a positive number"),
        ("--tau inf", "a positive number"),
        ("--alpha 1.5", "a number in [0, 1]"),
        ("--seed -1", "an integer in [0, 2**32)"),
        ("--loss mse", "tau-ce"),
    ],
)
def test_refuses_what_makes_no_sense(
    arguments: str, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments.split())
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert arguments.split()[0] in message and allowed in message
