"""Lipschitz layers, activations, pooling, containers and losses."""

from __future__ import annotations

from .activation import FullSort, GroupSort, GroupSort2, HouseHolder, LPReLU, MaxMin
from .conv import SpectralConv2d
from .downsampling import InvertibleDownSampling
from .linear import FrobeniusLinear, SpectralLinear
from .loss import (
    CategoricalHingeLoss,
    HingeMarginLoss,
    HingeMulticlassLoss,
    HKRLoss,
    HKRMulticlassLoss,
    KRLoss,
    KRMulticlassLoss,
    LseHKRMulticlassLoss,
    NegKRLoss,
    SoftHKRMulticlassLoss,
    TauBCEWithLogitsLoss,
    TauCrossEntropyLoss,
)
from .module import LipschitzModule, Sequential
from .ortho_conv import OrthoConv2d
from .ortho_conv_transpose import OrthoConvTranspose2d
from .pooling import (
    ScaledAdaptativeL2NormPool2d,
    ScaledAdaptiveAvgPool2d,
    ScaledAvgPool2d,
    ScaledL2NormPool2d,
)
from .upsampling import InvertibleUpSampling

__all__ = [
    "CategoricalHingeLoss",
    "FrobeniusLinear",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "HKRLoss",
    "HKRMulticlassLoss",
    "HingeMarginLoss",
    "HingeMulticlassLoss",
    "HouseHolder",
    "InvertibleDownSampling",
    "InvertibleUpSampling",
    "KRLoss",
    "KRMulticlassLoss",
    "LPReLU",
    "LipschitzModule",
    "LseHKRMulticlassLoss",
    "MaxMin",
    "NegKRLoss",
    "OrthoConv2d",
    "OrthoConvTranspose2d",
    "ScaledAdaptativeL2NormPool2d",
    "ScaledAdaptiveAvgPool2d",
    "ScaledAvgPool2d",
    "ScaledL2NormPool2d",
    "Sequential",
    "SoftHKRMulticlassLoss",
    "SpectralConv2d",
    "SpectralLinear",
    "TauBCEWithLogitsLoss",
    "TauCrossEntropyLoss",
]
