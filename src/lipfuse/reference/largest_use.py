"""How often a convolution uses one pixel: the corrective factor's count."""

from __future__ import annotations


def pixel_at(p: int, n: int, mode: str) -> int:
    """The pixel of ``n`` that place ``p`` of the padded line copies; -1 for a zero."""
    if 0 <= p < n:
        return p
    if mode == "zeros":
        return -1
    if mode == "replicate":
        return 0 if p < 0 else n - 1
    if mode == "circular":
        return p % n
    if mode == "reflect":
        if n == 1:
            return 0
        r = p % (2 * (n - 1))
        return r if r < n else 2 * (n - 1) - r
    r = p % (2 * n)
    return r if r < n else 2 * n - 1 - r


def count_on(
    n: int, kernel: int, stride: int, before: int, after: int, dilation: int, mode: str
) -> int:
    span, uses = dilation * (kernel - 1) + 1, [0] * n
    for start in range(0, n + before + after - span + 1, stride):
        for j in range(kernel):
            pixel = pixel_at(start + j * dilation - before, n, mode)
            if pixel >= 0:
                uses[pixel] += 1
    return max(uses)


def largest_use(
    kernel: int, stride: int, before: int, after: int, dilation: int, mode: str, length: int = 0
) -> int:
    """How often a convolution uses one pixel of an axis at most; ``length`` 0: of any length.

    Raises:
        ValueError: where counting would take minutes.
    """
    size = dilation * kernel + before + after + stride * dilation
    lengths = 1 if length or mode == "zeros" else 2 * size
    if size >= 1e9 or lengths * 3 * size * (1 + kernel / stride) >= 1e10:
        raise ValueError(
            "kernel, stride, padding and dilation are too large to count the uses of a pixel"
        )
    span = dilation * (kernel - 1) + 1
    reach = 2 * (span + before + after) + 2 * stride * dilation + 2
    shortest = 1
    if mode == "reflect":
        shortest = max(before, after) + 1
    elif mode in ("circular", "symmetric"):
        shortest = max(1, before, after)
    # Beyond this length both ends are independent of each other, and further pixels only repeat the
    # pattern of the stride.
    longest = reach + shortest
    if length:
        if length > longest:
            length = longest + (length - longest) % stride
        return count_on(length, kernel, stride, before, after, dilation, mode)
    if mode == "zeros":  # more pixels between zeros are in more windows
        shortest = longest
    return max(
        count_on(n, kernel, stride, before, after, dilation, mode)
        for n in range(shortest, longest + 1)
    )
