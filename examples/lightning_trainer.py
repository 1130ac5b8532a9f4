"""Group lasso on input pixels, then its zeros kept, in Lightning's Trainer: python examples/lightning_trainer.py."""

import lightning.pytorch as pl
import torch
from forgepress.compression.integrations import Compressor, Phase, lightning_callback
from forgepress.compression.pruning.sparsity_penalty import SparsityPenalty
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(folder: str = "runs/lightning_trainer", epochs: int = 10, **settings: object) -> nn.Module:
    digits = load_digits()
    rows = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    pl.seed_everything(0)
    model = Digits()
    lasso = SparsityPenalty(kind="group", groups="columns", strength=0.4, match="network.0.weight")
    compressor = Compressor(model, [Phase(techniques=[lasso], steps=0.7), Phase()])
    callbacks = [lightning_callback(compressor)]
    trainer = pl.Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks, **settings)  # pyright: ignore
    trainer.fit(model, DataLoader(rows, 64, shuffle=True))
    return model


if __name__ == "__main__":
    main()
