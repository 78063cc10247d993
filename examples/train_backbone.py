"""Trains a backbone on a data set and prints its accuracy, with one or more modalities missing.

python examples/train_backbone.py --data synthetic --backbone shared
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
import torch.nn.functional as F

from leeboard.prune import backbones, data

DATA = {
    "synthetic": data.synthetic,
    "xor": lambda seed: data.synthetic(xor=True, seed=seed),
    "unique": lambda seed: data.synthetic("unique", seed=seed),
    "digits-quadrants": lambda seed: data.digits_quadrants(),
    "digits-rows": lambda seed: data.digits_rows(),
    "breast-cancer": lambda seed: data.breast_cancer(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="synthetic")
    parser.add_argument("--backbone", choices=backbones.BACKBONES, default="shared")
    parser.add_argument("--attention", choices=("dense", "gqa", "sparse"), default="dense")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=4, help="of a modality, at most")
    parser.add_argument("--dropout", type=float, default=0.2, help="of a modality, in training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)

    every = DATA[args.data](seed=args.seed)
    train, validation, test = every.split(seed=args.seed)
    config = backbones.BackboneConfig.for_inputs(
        train.inputs,
        len(train.classes),
        tokens=args.tokens,
        attention=args.attention,
        seed=args.seed,
    )
    model = backbones.build(args.backbone, config)
    started = time.process_time()
    fit(model, train, args.epochs, args.dropout)
    seconds = time.process_time() - started

    print(every.notes)
    sizes = f"{len(train)} / {len(validation)} / {len(test)} windows"
    weights = sum(p.numel() for p in model.parameters())
    print(f"{args.backbone}, {args.attention}: {weights} weights, {sizes}, {seconds:.0f} CPU s")
    model.eval()
    for missing in range(len(model.modalities)):
        kept = itertools.combinations(model.modalities, len(model.modalities) - missing)
        shares = [accuracy(model, test, names) for names in kept]
        worst, mean = min(shares), sum(shares) / len(shares)
        print(f"{missing} missing: {mean:.1%} on average, {worst:.1%} at worst")


def fit(
    model: backbones.Backbone, train: data.SensorData, epochs: int, dropout: float, size: int = 100
) -> None:
    steps = epochs * -(-len(train) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for inputs, target in train.batches(size, seed=epoch):
            present = torch.rand(len(target), len(model.modalities)) >= dropout
            # At least one stays.
            present[~present.any(1), torch.randint(len(model.modalities), ())] = True
            optimizer.zero_grad()
            F.cross_entropy(model(inputs, present), target).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: backbones.Backbone, test: data.SensorData, names: tuple[str, ...]) -> float:
    logits = model({name: test.inputs[name] for name in names})
    return float((logits.argmax(1) == test.target).float().mean())


if __name__ == "__main__":
    main()
