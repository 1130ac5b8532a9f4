"""Magnitude pruning in an Accelerate loop: accelerate launch examples/accelerate_loop.py, also on several ranks."""

import torch
from accelerate import Accelerator
from forgepress.compression.integrations import Compressor, Phase
from forgepress.compression.pruning.magnitude import Magnitude
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main(epochs: int = 10) -> nn.Module:
    digits = load_digits()
    rows = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    compressor = Compressor(model, [Phase(techniques=[Magnitude(sparsity=0.8)])], micro_batches=2)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, 32, shuffle=True))
    accelerator.register_for_checkpointing(compressor)
    compressor.start(model, steps=epochs * -(-len(loader) // 2))
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                compressor.before_step(optimizer.param_groups[0]["lr"])
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.unscale_gradients()
                    compressor.after_backward(clip_norm=1.0)
                    optimizer.step()
                    compressor.after_step()
                    optimizer.zero_grad()
    compressor.finish()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main()
