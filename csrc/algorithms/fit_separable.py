"""Fits the coefficients of ``separable.h``: ``python csrc/algorithms/fit_separable.py``.

For an interval [l, 1] it looks for the a and f = f0 + f1 / x + f2 x² + f3 x⁴ with the least

    max over x, y of |1 - (x + y) (a + f(x) f(y))|

by Gauss and Newton's steps on squares that are weighted (Lawson) until the largest errors are
equal, and then for quartics in 1 - l through what it found.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def basis(x: Array) -> Array:
    return np.stack([np.ones_like(x), 1 / x, x**2, x**4], 1)


def largest_error(low: float, a: float, f: Array, points: int = 201) -> float:
    """The error on [l, 1]², of the f with these coefficients."""
    x = np.linspace(low, 1, points)
    values = basis(x) @ f
    return float(np.abs(1 - (x[:, None] + x) * (a + np.outer(values, values))).max())


def fit(low: float, start: Array, points: int = 33, rounds: int = 60) -> tuple[float, Array]:
    """The least largest error, and (a, f0, f1, f2, f3)."""
    x = (1 + low) / 2 + (1 - low) / 2 * np.cos(np.pi * np.arange(points) / (points - 1))
    sums = x[:, None] + x
    q, r = np.linalg.qr(basis(x))  # the functions themselves are nearly dependent
    now = np.concatenate([start[:1], r @ start[1:]])
    weights = np.ones_like(sums)
    best, found = np.inf, start
    for _ in range(rounds):
        for _ in range(4):
            f = q @ now[1:]
            error = 1 - sums * (now[0] + np.outer(f, f))
            slope = [np.ones_like(sums)] + [np.outer(c, f) + np.outer(f, c) for c in q.T]
            columns = [(weights * sums * s).ravel() for s in slope]
            now = (
                now
                + np.linalg.lstsq(np.stack(columns, 1), (weights * error).ravel(), rcond=None)[0]
            )
        f = q @ now[1:]
        size = np.abs(1 - sums * (now[0] + np.outer(f, f)))
        if size.max() < best:
            best = size.max()
            found = np.concatenate([now[:1], np.linalg.solve(r, now[1:])])
        weights = weights * np.sqrt(size / size.max() + 1e-3)
        weights /= weights.max()
    return float(best), found


def main() -> None:
    now = np.array([0.32, 0.46, 0.22, -0.36, 0.1])
    found, errors = [], []
    ends = np.arange(0.56, 0.955, 0.01)
    for low in ends:
        error, now = fit(low, now)
        found.append(now)
        errors.append(error)
    # Where the error is small the coefficients matter most.
    quartics = [
        np.polyfit(1 - ends, c, 4, w=1 / np.sqrt(errors))[::-1].round(6)
        for c in np.transpose(found)
    ]
    for name, c in zip(("a", "f[0]", "f[1]", "f[2]", "f[3]"), quartics):
        print(f"{name} = at(t, {', '.join(str(x) for x in c)});")
    for low in (0.57, 0.6, 0.65, 0.7, 0.8, 0.9, 0.99):
        c = np.array([np.polyval(q[::-1], 1 - low) for q in quartics])
        print(f"l = {low}: error {largest_error(low, c[0], c[1:]):.2e}")


if __name__ == "__main__":
    main()
