"""The host's model of a GPU as a machine: races, orders of execution, plans, mistakes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from host_model import near_orthogonal, random, start

# Parameters and arrays of every kernel; see inputs().
EVERY = {
    "power_iteration": ([3, 1e-12, 1], "wuv"),
    "spectral_normalize": ([2, 1e-12, 1, 0.7], "wuv"),
    "bjorck": ([0.5, 6, 1e-3, 1.0, 1], "w"),
    "spectral_bjorck": ([1, 1e-12, 1, 0.5, 6, 1e-3, 0.9, 1], "wuv"),
    "orthogonalize": ([1e-4, 1.0, 1], "w"),
    "frobenius_normalize": ([1e-12, 1.0], "w"),
    "spectral_bound": ([2], "w"),
    "power_iteration_backward": ([], "suv"),
    "spectral_normalize_backward": ([1e-12, 0.7, 1], "wswsuv"),
    "bjorck_backward": ([0.5, 3, 1.0], "whc"),
    "spectral_bjorck_backward": ([0.5, 3, 0.9, 1e-12], "whc2uv"),
    "orthogonalize_backward": ([1e-3, 1.0, 0, 0], "wwwri"),
    "orthogonalize_backward, factor": ([2e-3, 1.0, 0, 1], "wwwfi"),
    "frobenius_normalize_backward": ([1e-12, 1.0], "wws"),
}
ONE = 66 * 1024  # shared memory: little more than what the backend itself takes


def inputs(letters, shapes, dtype):
    return [x for shape in shapes for x in _inputs(letters, shape, dtype)]


def _inputs(letters, shape, dtype):
    b, m, n = shape
    small = min(m, n)
    q = near_orthogonal(0, b, m, n, 0.7, 1.3).astype(dtype)
    values = {
        "w": q,
        "u": random(1, b, m).astype(dtype),
        "v": random(2, b, n).astype(dtype),
        "s": np.ones(b, dtype),
        "h": np.repeat(q[:, None], 3, 1),
        "c": np.full(b, 3, np.int64),
        "2": np.ones((b, 2), dtype),
        # What the polar factor saves: the inverse root, unless it is square; the factor as well.
        "r": np.tile(np.eye(small, dtype=dtype), (b, int(m != n), 1, 1)),
        "f": np.tile(np.eye(small, dtype=dtype), (b, 1 + (m != n), 1, 1)),
        "i": np.tile([0.8, 1.3, 0, 1, 0.0], (b, 1)),
    }
    return [values[x] for x in letters]


def layouts(op):
    """(shapes, shared memory): a pool with scratch in shared and in global memory beside a team."""
    if op.startswith("frobenius"):
        return [([(3, 1, 70), (1, 1, 17000)], ONE)]
    if op.startswith(("power", "spectral_normalize")):
        return [([(2, 20, 12), (1, 60, 560), (1, 4, 900)], ONE)]
    return [([(1, 33, 40), (1, 66, 70)], ONE), ([(2, 33, 33), (1, 66, 66)], ONE)]


@pytest.mark.parametrize(
    "op, products",
    [*((op, "plain") for op in EVERY), ("orthogonalize", "split"), ("bjorck", "split")],
)
def test_no_races(programs, op, products):
    parameters, letters = EVERY[op]
    for shapes, shared in layouts(op):
        done = start(
            programs["races"],
            op.partition(",")[0],
            np.float32,
            shapes,
            inputs(letters, shapes, np.float32),
            parameters,
            resident=4,
            shared=shared,
            products=products,
        )
        said = done.stderr.decode()
        assert done.returncode == 0, said[:6000]
        assert re.search(r" 1x[234]", said) and "pool 0" not in said  # a team and a pool


def test_no_races_where_blocks_share_the_depth_of_a_tile(programs):
    shapes = [(1, 33, 300)]
    done = start(
        programs["races"],
        "orthogonalize",
        np.float32,
        shapes,
        inputs("w", shapes, np.float32),
        EVERY["orthogonalize"][0],
        resident=3,
        products="split",
    )
    assert done.returncode == 0, done.stderr.decode()[:6000]


@pytest.mark.parametrize("op", ["sort_pairs", "scaled_avg_pool2d", "l2_norm_pool2d"])
def test_no_races_in_layers(programs, op):
    x = random(0, 2, 6, 8, 4).astype(np.float32)
    grad = random(1, 2, 3, 4, 4).astype(np.float32)
    cases = [((24, 1, 8), [x], [1, 0, 0])]
    if op != "sort_pairs":
        pool = [2, 2, 0, 1, 4]
        given = [x, grad] if op == "l2_norm_pool2d" else [grad]
        cases = [((2, 6, 8), [x], [*pool, 0]), ((2, 6, 8), given, [*pool, 1])]
    for shape, arrays, parameters in cases:
        done = start(programs["races"], op, np.float32, shape, arrays, parameters, resident=2)
        assert done.returncode == 0, done.stderr.decode()[:6000]


@pytest.mark.parametrize("op", EVERY)
def test_any_order_gives_the_same_bits(programs, op):
    parameters, letters = EVERY[op]
    for shapes, shared in layouts(op):
        results = []
        for order in ("backward", "shuffled"):
            done = start(
                programs["memory"],
                op.partition(",")[0],
                np.float32,
                shapes,
                inputs(letters, shapes, np.float32),
                parameters,
                shared=shared,
                order=order,
            )
            assert done.returncode == 0, done.stderr.decode()[:6000]
            results.append(done.stdout)
        assert results[0] == results[1]


@pytest.mark.parametrize(
    "kind, program, says",
    [
        ("race", "races", "data race"),
        ("bounds", "memory", "use-after-poison"),
        ("barrier", "memory", "wait at a barrier"),
    ],
)
def test_mistakes_are_found(programs, kind, program, says):
    done = start(programs[program], f"mistake_{kind}", np.float64, (1, 1, 1))
    assert done.returncode != 0 and says in done.stderr.decode()


# ---- plans ---------------------------------------------------------------------------------------

RESNET = (
    [(1, 64, 576)] * 5 + [(1, 128, 1152)] * 5 + [(1, 256, 2304)] * 5 + [(1, 512, 4608)] * 5
) + [(1, 512, 512), (1, 1000, 512)]


def plan(programs, shapes, resident, shared=227 * 1024, products="split"):
    """Blocks, blocks in the pool, shared bytes; (matrices, blocks, cost, wanted) of every item."""
    done = start(
        programs["memory"],
        "plan",
        np.float32,
        shapes,
        resident=resident,
        shared=shared,
        products=products,
    )
    assert done.returncode == 0, done.stderr.decode()
    first, *rest = done.stdout.decode().splitlines()
    return [int(x) for x in first.split()], [tuple(map(float, x.split())) for x in rest]


@pytest.mark.parametrize("resident", [1, 2, 40, 132, 148])
@pytest.mark.parametrize(
    "shapes",
    [
        RESNET,
        [(1, 4096, 4096)],
        [(300, 8, 9)],
        [(1000, 256, 256), (3, 5, 5)],
        [(0, 4, 4), (1, 3, 0), (2, 1, 1)],
    ],
    ids=["network", "large", "small", "batch", "empty"],
)
def test_plan_gives_every_matrix_a_place(programs, shapes, resident):
    (blocks, pool, shared), items = plan(programs, shapes, resident)
    assert blocks <= resident and shared <= 227 * 1024
    teams = sum(matrices * b for matrices, b, *_ in items if b > 1)
    assert teams + pool == blocks
    assert sorted(m for m, *_ in items) == sorted(float(s[0]) for s in shapes)
    single = sum(m for m, b, *_ in items if b == 1)
    assert (pool > 0) == (single > 0) and pool <= single
    costs = [cost for _, _, cost, _ in items]
    assert costs == sorted(costs, reverse=True)
    assert all(b <= max(1, wanted) for _, b, _, wanted in items)


def test_a_network_keeps_a_gpu_busy(programs):
    """The longest of all takes hardly longer than if work could be shared out evenly."""
    (_, pool, _), items = plan(programs, RESNET, 132)
    total = sum(m * cost for m, _, cost, _ in items)
    singles = [cost for m, b, cost, _ in items if b == 1 for _ in range(int(m))]
    longest = max(
        *(cost / b for _, b, cost, _ in items if b > 1),
        max([*(sum(singles[i::pool]) for i in range(pool)), 0]),
    )
    assert longest < 1.25 * total / 132
