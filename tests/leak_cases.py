"""Maps whose bound peers' layers exceed, shared by the tests and by ``python -m benchmarks.leaks``.

A case is a layer by the name that both lipfuse and deel-torchlip give it, its arguments, and the
shape of an input. What the peer reaches there is measured by the command.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Geometry(NamedTuple):
    """One layer.

    Attributes:
        layer: its class in ``lipfuse.nn`` and in ``deel.torchlip``.
        arguments, settings: for its constructor.
        shape: of an input, without the batch dimension.
        text: as the table of leaks has it; empty for cases of the tests alone.
        recorded: what was measured on deel-torchlip 1.0.5 with torch 2.13.
    """

    layer: str
    arguments: tuple[Any, ...]
    settings: dict[str, Any]
    shape: tuple[int, ...]
    text: str = ""
    recorded: str = ""

    def made(self, library: Any, **further: Any) -> nn.Module:
        """The layer, of one library or the other."""
        module: nn.Module = getattr(library, self.layer)(
            *self.arguments, **{**self.settings, **further}
        )
        return module


def _conv(
    arguments: tuple[Any, ...], shape: tuple[int, ...], text: str = "", recorded: str = "", **k: Any
) -> Geometry:
    return Geometry("SpectralConv2d", arguments, k, shape, text, recorded)


def _transposed(
    arguments: tuple[Any, ...], shape: tuple[int, ...], text: str = "", recorded: str = "", **k: Any
) -> Geometry:
    return Geometry("SpectralConvTranspose2d", arguments, k, shape, text, recorded)


GEOMETRIES: dict[str, Geometry] = {
    "Linear square": Geometry("SpectralLinear", (16, 16), {}, (16,)),
    "Linear tall": Geometry("SpectralLinear", (5, 24), {}, (5,)),
    "Linear wide": Geometry("SpectralLinear", (24, 5), {"bias": False}, (24,)),
    "stride 3 dilation 3": _conv(
        (1, 2, 3),
        (1, 13, 10),
        "Conv2d 3x3, stride = dilation = 3",
        "1.54 at first, worst 2.63",
        stride=3,
        dilation=3,
    ),
    "stride 2 dilation 2": _conv(
        (2, 3, 3),
        (2, 12, 9),
        "Conv2d 3x3, stride 2, dilation 2",
        "worst 1.43",
        stride=2,
        dilation=2,
    ),
    "circular": _conv(
        (2, 3, 3),
        (2, 5, 6),
        "Conv2d circular, kernel 3, padding 2",
        "worst 1.60",
        padding=2,
        padding_mode="circular",
    ),
    "reflect 3": _conv(
        (2, 3, 3),
        (2, 5, 4),
        "Conv2d reflect, kernel 3, padding 1",
        "worst 1.23",
        padding=1,
        padding_mode="reflect",
    ),
    "reflect 5": _conv(
        (2, 3, 5),
        (2, 5, 6),
        "Conv2d reflect, kernel 5, padding 2",
        "worst 1.12",
        padding=2,
        padding_mode="reflect",
    ),
    "replicate": _conv(
        (2, 3, 5),
        (2, 5, 6),
        "Conv2d replicate, kernel 5, padding 2",
        "worst 1.17",
        padding=2,
        padding_mode="replicate",
    ),
    "symmetric": _conv(
        (2, 3, 3),
        (2, 5, 6),
        "Conv2d symmetric, padding (2, 0)",
        "worst 1.69, wrong width",
        padding=(2, 0),
        padding_mode="symmetric",
    ),
    "groups": _conv((4, 6, 3), (4, 5, 5), padding=1, groups=2),
    "strided": _conv((3, 4, 4), (3, 6, 6), stride=2, padding=1),
    "one axis": Geometry("SpectralConv1d", (2, 3, 5), {"stride": 2, "padding": 2}, (2, 9)),
    "transposed": _transposed((3, 2, 4), (3, 4, 3), stride=2, padding=1),
    "transposed output padding": Geometry(
        "SpectralConvTranspose1d",
        (4, 2, 5),
        {"stride": 2, "output_padding": 1, "groups": 2},
        (4, 6),
    ),
}


def spectral_only(geometry: Geometry) -> Geometry:
    """The same without Björck's iteration."""
    return geometry._replace(settings={**geometry.settings, "eps_bjorck": None})


TRANSPOSED: dict[str, Geometry] = {
    name: spectral_only(
        _transposed(
            (3, 4, k), (3, 4, 4), f"ConvTranspose2d {name}, spectral only", recorded, stride=2
        )
    )
    for name, k, recorded in (("k2 s2", 2, "worst 1.89"), ("k4 s2", 4, "worst 1.83"))
}

FIRST_FORWARD: list[tuple[int, int]] = [(3, 64), (1, 64), (2, 256), (8, 256), (16, 512)]
"""Channels of ``ConvTranspose2d(·, ·, 4, stride=2)`` whose first training forward is NaN there."""
