"""2:4 pruning of a small GPT-2 in transformers' Trainer: python examples/transformers_trainer.py."""

import torch
from forgepress.compression.integrations import Compressor, Phase, transformers_callback
from forgepress.compression.pruning.magnitude import Magnitude
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


def main(folder: str = "runs/transformers_trainer", steps: int = 30) -> nn.Module:
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(64, (64, 32))]
    pruning = Magnitude(sparsity="2:4", match=("*.attn.*weight", "*.mlp.*weight"))
    compressor = Compressor(model, [Phase(techniques=[pruning])])
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    callbacks = [transformers_callback(compressor)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)  # pyright: ignore
    trainer.train()
    return model


if __name__ == "__main__":
    main()
