"""How far apart are blank images and images of a frame? Written for deel-torchlip.

A frame may lie anywhere; every one has the same distance to the blank image, which therefore is the
Wasserstein distance of the two distributions.
"""

import torch
from deel import torchlip
from torch import nn

SIDE, FRAME, STEPS, BATCH = 12, 6, 300, 64


def frames(count):
    images = torch.zeros(count, 1, SIDE, SIDE)
    for image, (row, column) in zip(images, torch.randint(SIDE - FRAME + 1, (count, 2)).tolist()):
        image[0, row : row + FRAME, column : column + FRAME] = 0.5
        image[0, row + 1 : row + FRAME - 1, column + 1 : column + FRAME - 1] = 0.0
    return images


torch.manual_seed(0)
model = torchlip.Sequential(
    nn.Flatten(),
    torchlip.SpectralLinear(SIDE * SIDE, 64),
    torchlip.FullSort(),
    torchlip.SpectralLinear(64, 32),
    torchlip.FullSort(),
    torchlip.FrobeniusLinear(32, 1),
)
loss_of = torchlip.KRLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
labels = torch.cat([torch.ones(BATCH, 1), torch.zeros(BATCH, 1)])
for _ in range(STEPS):
    images = torch.cat([frames(BATCH), torch.zeros(BATCH, 1, SIDE, SIDE)])
    optimizer.zero_grad()
    (-loss_of(model(images), labels)).backward()
    optimizer.step()

model(images)  # theirs evaluates with the weights of the last training forward
plain = model.eval().vanilla_export()
images = torch.cat([frames(500), torch.zeros(500, 1, SIDE, SIDE)])
labels = torch.cat([torch.ones(500, 1), torch.zeros(500, 1)])
with torch.no_grad():
    outputs = model(images)
    exported = plain(images)
result = {
    "exact": 0.5 * (4 * FRAME - 4) ** 0.5,
    "distance": float(torchlip.functional.kr_loss(outputs, labels).mean()),
    "export": float((exported - outputs).abs().max()),
}
