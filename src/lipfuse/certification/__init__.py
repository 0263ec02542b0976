"""Certificates: proven bounds of the Lipschitz constant of whole networks.

One subject a file: `certificate` is what one gets; `tracing` runs the network on a stand-in for its
input; `structure`, `activations`, `pooling`, `weighted` and `layers` say of each operation what it
may do, `patterns` of some groups of them; `values` puts that together, `norms` computes.
"""

from __future__ import annotations

from .certificate import Certificate, LayerBound
from .certifying import certify
from .layers import register, unregister

__all__ = ["Certificate", "LayerBound", "certify", "register", "unregister"]
