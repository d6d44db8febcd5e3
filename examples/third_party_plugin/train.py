"""How `tidepool/limpet6.safetensors` was made: `python train.py`, half a minute on one core."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import tidepool

EPOCHS, BATCH = 12, 64


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return normalised pictures and labels."""
    drawn, labels = tidepool.draw_pictures(count, seed=seed)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tidepool.MEAN, tidepool.STD))
    return (torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255 - mean) / std, torch.from_numpy(labels)


def main() -> None:
    """Train, test on pictures of another seed, and write the weights."""
    torch.manual_seed(0)
    model = tidepool.create_model("limpet6").train()
    images, labels = pictures(4096, seed=0)
    steps = EPOCHS * len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    images, labels = pictures(2000, seed=1)
    with torch.no_grad():
        error = (model(images).argmax(1) != labels).float().mean().item()
    save_file(model.state_dict(), Path(tidepool.__file__).with_name("limpet6.safetensors"))
    print(f"error on pictures of another seed: {error:.1%}")


if __name__ == "__main__":
    main()
