"""Certificates: proven bounds of the Lipschitz constant of whole networks.

One subject a file: `certificate` is what one gets; `tracing` runs the network on a stand-in for its
input (`stand_in`), through calls (`arguments`) and modules (`modules`); the table of `rules` says
of each operation what it may do, and is filled by `structure`, `arithmetic`, `selection`,
`activations`, `pooling`, `weighted`, `layers` (whole modules) and `refusals`; `patterns` knows
groups of operations. `values` puts that together, with the linear parts of a network in
`linear_map`; `norms` computes.
"""

from __future__ import annotations

from .certificate import Certificate, LayerBound
from .certifying import certify
from .layers import register, unregister

__all__ = ["Certificate", "LayerBound", "certify", "register", "unregister"]
