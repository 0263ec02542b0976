"""Speed on a GPU: ``python -m benchmarks.cuda [--quick] [--only NAME] [--json PATH]``.

Times are the GPU's, from events around the calls; contenders take turns in one process, figures are
medians. Everybody gets the same float32 weights and incoming gradients. ``--device cpu`` runs the
same code on the processor, to find mistakes in it where there is no GPU: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipfuse
from benchmarks import peers, runner, steps
from benchmarks.runner import Call, Contender, Session, Target
from lipfuse import functional

OURS, TOGETHER, DEEL = "lipfuse", "lipfuse, one launch", "deel-torchlip"
COMPILED, COPY = "compiled Björck-5", "copy"
RESNET = (
    [(64, 64, 3, 3)] * 5
    + [(128, 64, 3, 3)]
    + [(128, 128, 3, 3)] * 4
    + [(256, 128, 3, 3)]
    + [(256, 256, 3, 3)] * 4
    + [(512, 256, 3, 3)]
    + [(512, 512, 3, 3)] * 4
    + [(512, 512), (1000, 512)]
)
"""20 convolutions of 64 to 512 channels, and two linear layers."""


class Events:
    """A clock of the GPU: seconds, precise between any two readings that follow each other."""

    def __init__(self) -> None:
        self.last, self.seconds = self._event(), 0.0

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event

    def __call__(self) -> float:
        now = self._event()
        self.seconds += self.last.elapsed_time(now) / 1e3
        self.last = now
        return self.seconds


class Bench:
    """A session and the device it runs on."""

    def __init__(self, session: Session, device: str) -> None:
        self.session, self.device = session, device
        self.quick = session.settings.quick

    def weight(self, shape: Sequence[int], kind: str = "near", seed: int = 0) -> Tensor:
        rows = shape[0]
        columns = int(torch.tensor(shape[1:]).prod())
        if min(rows, columns) > 1024 and kind == "near":
            # A decomposition on the processor would take longer than all the rest.
            torch.manual_seed(seed)
            q = torch.linalg.qr(torch.randn(rows, columns, device=self.device))[0]
            scale = torch.empty(columns, device=self.device).uniform_(0.88, 1.45)
            return (q * scale).contiguous()
        return peers.matrix(kind, rows, columns, seed).reshape(tuple(shape)).to(self.device)

    def compiled(self, name: str, make: Callable[[], Call]) -> Contender:
        if self.quick:
            return Contender(name, None, "compiling takes too long for a quick run")
        return Contender(name, make(), slow_start=True)


# ---- weights -------------------------------------------------------------------------------------


def weights_step(
    function: Callable[[list[Tensor]], list[Tensor]], parameters: list[Tensor], grads: list[Tensor]
) -> Call:
    """All normalised weights, and the parameters' gradients from theirs."""

    def call() -> None:
        for p in parameters:
            p.grad = None
        torch.autograd.backward(function(parameters), grads)

    return call


def deel_step(ws: list[Tensor], grads: list[Tensor]) -> tuple[Call | None, str]:
    """The weights of deel-torchlip's layers, whose power iterations have converged."""
    torchlip, reason = peers.deel()
    if torchlip is None:
        return None, reason
    layers: list[Any] = []
    for w in ws:
        if w.dim() == 4:
            layer = torchlip.SpectralConv2d(w.shape[1], w.shape[0], w.shape[2], padding=1)
        else:
            layer = torchlip.SpectralLinear(w.shape[1], w.shape[0])
        layer = layer.to(w.device).train()
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(w)
            for _ in range(30):
                layer.weight  # noqa: B018
        layers.append(layer)

    def call() -> None:
        for layer in layers:
            layer.parametrizations.weight.original.grad = None
        torch.autograd.backward([layer.weight for layer in layers], grads)

    return call, ""


def bjorck_5(weights: list[Tensor]) -> list[Tensor]:
    """What one would write by hand for nearly orthogonal weights: five iterations, no more."""
    results = []
    for w in weights:
        x = w.flatten(1)
        wide = x.shape[0] <= x.shape[1]
        for _ in range(5):
            x = 1.5 * x - 0.5 * ((x @ x.mT) @ x if wide else x @ (x.mT @ x))
        results.append(x.reshape(w.shape))
    return results


def error_of(function: Callable[[list[Tensor]], list[Tensor]], ws: list[Tensor]) -> Any:
    def facts() -> dict[str, float]:
        with torch.no_grad():
            return {"‖QᵀQ-I‖": max(peers.orthogonality_error(q) for q in function(ws))}

    return facts


def compare_weights(
    bench: Bench, case: str, shapes: Sequence[Sequence[int]], targets: list[Target]
) -> None:
    ws = [bench.weight(s, seed=i) for i, s in enumerate(shapes)]
    grads = [torch.randn_like(w) for w in ws]

    def together(weights: list[Tensor]) -> list[Tensor]:
        return functional.foreach_orthogonalize(weights)

    def one_by_one(weights: list[Tensor]) -> list[Tensor]:
        return [functional.orthogonalize(w.flatten(1)).reshape(w.shape) for w in weights]

    def step(function: Callable[[list[Tensor]], list[Tensor]]) -> Call:
        return weights_step(function, [w.clone().requires_grad_() for w in ws], grads)

    call, reason = deel_step(ws, grads)
    name = TOGETHER if len(ws) > 1 else OURS
    contenders = [
        Contender(name, step(together), ours=True, facts=error_of(together, ws)),
        Contender(DEEL, call, reason),
        bench.compiled(COMPILED, lambda: step(torch.compile(bjorck_5, dynamic=False))),
    ]
    if len(ws) > 1:
        contenders.insert(1, Contender("lipfuse, one by one", step(one_by_one), ours=True))
    about = {"shapes": [list(s) for s in shapes]}
    bench.session.compare(case, contenders, ours=name, targets=targets, about=about, patience=5)
    torch.compiler.reset()


def network(bench: Bench) -> None:
    """A network's weights, forward and backward."""
    shapes = RESNET[::5] if bench.quick else RESNET
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        targets = [
            Target.faster(DEEL, TOGETHER, 25.0),
            Target.faster(COMPILED, TOGETHER, 10.0),
        ]
        compare_weights(bench, f"{len(shapes)} weights of a ResNet, {setting}", shapes, targets)
    torch.set_float32_matmul_precision("highest")


def weights(bench: Bench) -> None:
    """One weight, forward and backward."""
    shapes = [(64, 64), (128, 128), (256, 256), (512, 512), (64, 576), (256, 2304)]
    for shape in shapes[:1] if bench.quick else shapes:
        targets = [Target.faster(DEEL, OURS, 10.0)]
        compare_weights(bench, f"{shape[0]}x{shape[1]}", [shape], targets)


# ---- spectral normalisation ----------------------------------------------------------------------


def spectral(bench: Bench) -> None:
    """One weight divided by its spectral norm, forward and backward."""
    for n in (64,) if bench.quick else (64, 512, 2048, 4096):
        w = bench.weight((n, n), "gaussian")
        grad, calls = torch.randn_like(w), {}
        for name, register in (
            (OURS, lipfuse.parametrizations.spectral_norm),
            ("torch spectral_norm", parametrizations.spectral_norm),
        ):
            layer: Any = register(nn.Linear(n, n, bias=False)).to(bench.device).train()
            parameter = layer.parametrizations.weight.original
            with torch.no_grad():
                parameter.copy_(w)

            def call(
                layer: Any = layer, parameter: Tensor = parameter, grad: Tensor = grad
            ) -> None:
                parameter.grad = None
                layer.weight.backward(grad)

            calls[name] = Contender(name, call, ours=name == OURS)
        bench.session.compare(
            f"{n}x{n}",
            list(calls.values()),
            ours=OURS,
            targets=[Target.faster("torch spectral_norm", OURS, 3.0)],
        )


def bandwidth(bench: Bench) -> None:
    """Four power iterations beside a copy, which reads and writes W once."""
    cuda = bench.device == "cuda"
    cache = torch.cuda.get_device_properties(0).L2_cache_size if cuda else 0
    sizes = (
        [(128, 96)] if bench.quick else [(2048, 2048), (8192, 4096), (16384, 4096), (8192, 8192)]
    )
    for rows, columns in sizes:
        w = bench.weight((rows, columns), "gaussian")
        u = torch.nn.functional.normalize(torch.randn(rows, device=bench.device), dim=0)
        v, out = w.mT @ u, torch.empty_like(w)
        v = v / v.norm()

        def call(w: Tensor = w, u: Tensor = u, v: Tensor = v) -> None:
            torch.ops.lipfuse.power_iteration(w, u, v, 4, 1e-12)

        def copy(w: Tensor = w, out: Tensor = out) -> None:
            out.copy_(w)

        # 70 % of the bandwidth: four readings in the time of 4 / 2 copies over 0.7.
        above = rows * columns * 4 > 1.2 * cache
        bench.session.compare(
            f"4 power iterations, {rows}x{columns}" + ("" if above else ", within L2"),
            [Contender(OURS, call, ours=True), Contender(COPY, copy, yardstick=True)],
            ours=OURS,
            targets=[Target.within(OURS, COPY, 4 / 2 / 0.7)] if above else [],
            about={"l2_bytes": cache, "bytes": rows * columns * 4},
        )


# ---- large weights -------------------------------------------------------------------------------

# Published for singular values in [1e-3, 1] (Amsel et al., arXiv 2505.16932), then Taylor's.
POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]
TAYLOR = (1.875, -1.25, 0.375)


def newton_schulz(w: Tensor, bound: float, plan: list[tuple[float, float, float]]) -> Tensor:
    """Steps X <- aX + (bA + cA²)X with A = X Xᵀ in plain torch, for a W of at most `bound`."""
    x = w / bound
    for a, b, c in plan:
        gram = x @ x.mT
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x


def large(bench: Bench) -> None:
    """The polar factor of large square weights against Newton-Schulz as accurate as it."""
    tol = 1e-3
    sizes = [(96, "near")] if bench.quick else [(1024, "near"), (4096, "near"), (4096, "gaussian")]
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        for n, kind in sizes:
            w = bench.weight((n, n), kind)
            bound = 1.46 if kind == "near" else 2.01 * n**0.5
            start = [] if kind == "near" else POLAR_EXPRESS

            def ours(w: Tensor = w) -> Tensor:
                return torch.ops.lipfuse.orthogonalize(w, tol, 1.0, False)[0]

            # As many steps as it needs, found out beforehand: no peer looks while it runs.
            wanted = max(peers.orthogonality_error(ours()), tol)
            plan = list(start)
            while len(plan) < 16:
                plan.append(TAYLOR)
                if peers.orthogonality_error(newton_schulz(w, bound, plan)) <= wanted:
                    break

            def theirs(w: Tensor = w, bound: float = bound, plan: Any = plan) -> Tensor:
                return newton_schulz(w, bound, plan)

            def error(function: Callable[[], Tensor]) -> Callable[[], dict[str, float]]:
                return lambda: {"‖QᵀQ-I‖": peers.orthogonality_error(function())}

            other = torch.randn_like(w)
            bench.session.compare(
                f"{n}x{n}, {kind}, {setting}",
                [
                    Contender(OURS, ours, ours=True, facts=error(ours)),
                    Contender(f"Newton-Schulz, {len(plan)} steps", theirs, facts=error(theirs)),
                    Contender(
                        "torch.mm",
                        lambda w=w, other=other: torch.mm(w, other),  # type: ignore[misc]
                        yardstick=True,
                    ),
                ],
                ours=OURS,
                targets=[Target.faster(f"Newton-Schulz, {len(plan)} steps", OURS, 1.0)],
                work=2.0 * n**3,
            )
    torch.set_float32_matmul_precision("highest")


# ---- layers and a whole step ---------------------------------------------------------------------


def activations(bench: Bench) -> None:
    """GroupSort2 and the pools, forward and backward, beside torch's nearest relatives."""
    shape = (2, 8, 8, 8) if bench.quick else (256, 64, 32, 32)
    for format in (torch.contiguous_format, torch.channels_last):
        name = "channels last" if format is torch.channels_last else "contiguous"
        x = torch.randn(shape, device=bench.device).contiguous(memory_format=format)
        for ours, theirs in (
            (lipfuse.nn.GroupSort2(), nn.ReLU()),
            (lipfuse.nn.ScaledL2NormPool2d((2, 2)), nn.AvgPool2d(2)),
            (lipfuse.nn.ScaledAvgPool2d((2, 2)), nn.AvgPool2d(2)),
        ):

            def step(layer: nn.Module, x: Tensor = x) -> Call:
                given = x.clone(memory_format=torch.preserve_format).requires_grad_()
                grad = torch.randn_like(layer(given))

                def call() -> None:
                    given.grad = None
                    layer(given).backward(grad)

                return call

            label, other = type(ours).__name__, type(theirs).__name__
            bench.session.compare(
                f"{label}, {name}",
                [Contender(label, step(ours), ours=True), Contender(other, step(theirs))],
                ours=label,
                targets=[Target.within(label, other, 1.5)],
            )


def training(bench: Bench) -> None:
    """The step of a CNN on images of CIFAR's size: forward, loss, backward, Adam."""
    batch = 4 if bench.quick else 256
    torchlip, reason = peers.deel()
    for format in (torch.contiguous_format, torch.channels_last):
        name = "channels last" if format is torch.channels_last else "contiguous"
        x = torch.randn(batch, 3, 32, 32, device=bench.device).contiguous(memory_format=format)
        labels = torch.randint(10, (batch,), device=bench.device)
        contenders = []
        for contender in (steps.PLAIN, steps.SORTED, steps.DEEL, steps.OURS, steps.FUSED):
            if contender == steps.DEEL and torchlip is None:
                contenders.append(Contender(contender, None, reason))
                continue
            kit = steps.KITS.get(contender, steps.KITS[steps.OURS])
            if contender == steps.DEEL:
                kit = steps.kit_of(torchlip)
            model = steps.six_convs(kit)
            steps.set_weights(model)
            model = model.to(bench.device, memory_format=format)
            if contender == steps.FUSED:
                lipfuse.fuse(model)
            call = steps.training_step(model, x, labels)
            ours = contender in (steps.OURS, steps.FUSED)
            contenders.append(Contender(contender, call, ours=ours))
        bench.session.compare(
            f"six convolutions, batch {batch}, {name}",
            contenders,
            ours=steps.FUSED,
            targets=[Target.within(steps.FUSED, steps.SORTED, 1.1)],
            patience=5,
        )


# ---- the command line ----------------------------------------------------------------------------

QUESTIONS: dict[str, Callable[[Bench], None]] = {
    "network": network,
    "weights": weights,
    "spectral": spectral,
    "bandwidth": bandwidth,
    "large": large,
    "activations": activations,
    "training": training,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the questions named, or all.

    Returns:
        0; 3 where there is no GPU.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    p = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    p.add_argument("--only", action="append", default=[], choices=list(QUESTIONS))
    p.add_argument("--quick", action="store_true", help="few and small cases")
    p.add_argument("--budget", type=float, default=1.5, metavar="SECONDS", help="of each case")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    arguments = p.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False")
        return 3
    settings = runner.Settings.of(
        arguments.quick, budget=0.2 if arguments.quick else arguments.budget, sample=1e-3, most=100
    )
    clock = Events() if arguments.device == "cuda" else time.perf_counter
    session = Session(settings, clock, out=lambda text: print(text, flush=True))
    print(runner.header(runner.machine(), runner.versions()))
    if arguments.device == "cuda":
        print(torch.cuda.get_device_name(0))
    bench, started = Bench(session, arguments.device), time.perf_counter()
    for name in arguments.only or list(QUESTIONS):
        session.begin(name, (QUESTIONS[name].__doc__ or "").strip())
        torch.manual_seed(0)
        QUESTIONS[name](bench)
        if arguments.json:  # what is there so far, in case that time runs out
            write(arguments.json, session, time.perf_counter() - started, given)
    print(session.summary())
    print(f"\n{time.perf_counter() - started:.0f} s")
    return 0


def write(path: Path, session: Session, seconds: float, given: Sequence[str]) -> None:
    """The record as JSON."""
    found = runner.record(session, seconds, given)
    found["command"] = ["python", "-m", "benchmarks.cuda", *given]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(0)),
            "processors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
