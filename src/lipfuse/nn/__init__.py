"""Lipschitz layers, activations, pooling, containers and losses."""

from __future__ import annotations

from ..export import vanilla_model
from . import functional, init, normalizers, utils
from .activation import FullSort, GroupSort, GroupSort2, HouseHolder, LPReLU, MaxMin
from .batch_norm import BatchCentering, BatchCentering2d, BatchLipNorm
from .centering import LayerCentering, LayerCentering2d, ScaleBiasLayer
from .conv import FrobeniusConv2d, SpectralConv1d, SpectralConv2d, SpectralConv3d
from .conv_transpose import (
    SpectralConvTranspose1d,
    SpectralConvTranspose2d,
    SpectralConvTranspose3d,
)
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
from .module import LipschitzModule
from .ortho_conv import OrthoConv2d
from .ortho_conv_transpose import OrthoConvTranspose2d
from .pad_conv import PadConv1d, PadConv2d, PadConv3d
from .pooling import (
    ScaledAdaptativeL2NormPool2d,
    ScaledAdaptiveAvgPool2d,
    ScaledAvgPool2d,
    ScaledL2NormPool2d,
)
from .residual import LipResidual
from .scaling import ScaledLipschitzModule, SharedLipFactory
from .sequential import Sequential
from .upsampling import InvertibleUpSampling

__all__ = [
    "BatchCentering",
    "BatchCentering2d",
    "BatchLipNorm",
    "CategoricalHingeLoss",
    "FrobeniusConv2d",
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
    "LayerCentering",
    "LayerCentering2d",
    "LipResidual",
    "LipschitzModule",
    "LseHKRMulticlassLoss",
    "MaxMin",
    "NegKRLoss",
    "OrthoConv2d",
    "OrthoConvTranspose2d",
    "PadConv1d",
    "PadConv2d",
    "PadConv3d",
    "ScaleBiasLayer",
    "ScaledAdaptativeL2NormPool2d",
    "ScaledAdaptiveAvgPool2d",
    "ScaledAvgPool2d",
    "ScaledL2NormPool2d",
    "ScaledLipschitzModule",
    "Sequential",
    "SharedLipFactory",
    "SoftHKRMulticlassLoss",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralConv3d",
    "SpectralConvTranspose1d",
    "SpectralConvTranspose2d",
    "SpectralConvTranspose3d",
    "SpectralLinear",
    "TauBCEWithLogitsLoss",
    "TauCrossEntropyLoss",
    "functional",
    "init",
    "normalizers",
    "utils",
    "vanilla_model",
]
