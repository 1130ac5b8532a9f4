"""Network surgery in a plain torch loop: python examples/plain_loop.py. Half of it prunes, the rest keeps the zeros."""

import torch
from forgepress.compression.integrations import Compressor, Phase
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from sklearn.datasets import load_digits
from torch import nn


def main(steps: int = 300) -> nn.Module:
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    targets = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    surgery = Phase(techniques=[NetworkSurgery(sparsity=0.9)], steps=0.5)
    compressor = Compressor(model, [surgery, Phase()], steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,))
        compressor.before_step(optimizer.param_groups[0]["lr"])
        nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        compressor.after_backward(clip_norm=1.0)
        optimizer.step()
        compressor.after_step()
        optimizer.zero_grad()
    compressor.finish()
    right = float((model(inputs).argmax(dim=1) == targets).float().mean())
    print(f"{int((model[0].weight == 0).sum())} of 6400 weights are zero, {right:.1%} right")
    return model


if __name__ == "__main__":
    main()
