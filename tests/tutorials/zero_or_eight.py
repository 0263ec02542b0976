"""Zero or eight? A robust classifier of two digits with a hinge. Written for deel-torchlip."""

import torch
from deel import torchlip
from torch import nn

from lipfuse.demo.data import load_digits

EPOCHS, BATCH = 10, 64


def zeros_and_eights(images, labels):
    chosen = (labels == 0) | (labels == 8)
    return images[chosen], (labels[chosen] == 8).float().unsqueeze(1) * 2 - 1


torch.manual_seed(0)
digits = load_digits()
images, labels = zeros_and_eights(digits.train_images, digits.train_labels)
test_images, test_labels = zeros_and_eights(digits.test_images, digits.test_labels)

model = torchlip.Sequential(
    torchlip.SpectralConv2d(1, 8, (3, 3), padding="same"),
    torchlip.GroupSort2(),
    torchlip.ScaledL2NormPool2d((2, 2)),
    torchlip.SpectralConv2d(8, 16, (3, 3), padding=1, bias=False),
    torchlip.LayerCentering(16),
    torchlip.GroupSort2(),
    torchlip.ScaledAvgPool2d((2, 2)),
    nn.Flatten(),
    torchlip.SpectralLinear(16 * 7 * 7, 32),
    torchlip.MaxMin(),
    torchlip.FrobeniusLinear(64, 1),
    k_coef_lip=1.0,
)
loss_of = torchlip.HKRLoss(alpha=0.98, min_margin=1.0)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(EPOCHS):
    for chosen in torch.randperm(len(images)).split(BATCH):
        optimizer.zero_grad()
        loss_of(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()

model(images[:BATCH])  # theirs evaluates with the weights of the last training forward
model.eval()
with torch.no_grad():
    outputs = model(test_images)
result = {
    "accuracy": float((outputs.sign() == test_labels).float().mean()),
    "radius": float((outputs * test_labels).clamp_min(0).mean()),
    "distance": float(torchlip.functional.kr_loss(outputs, test_labels).mean()),
}
