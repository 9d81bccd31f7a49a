"""Training in PyTorch: the same GPT and AdamW, plain and under naive control on the host."""

import math
import time
from collections.abc import Callable

import jax_steps
import numpy as np
import torch
from entropic_export.bundles import gpt
from torch import nn
from torch.nn import functional as F

Run = Callable[[int], float]


class Block(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: gpt.Config) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc, self.out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        split = self.qkv(self.ln_1(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """The model of `entropic_export.bundles.gpt`."""

    def __init__(self, config: gpt.Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_rows, config.width)
        self.wpe = nn.Parameter(0.02 * torch.randn(config.context, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.ln_f = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.ln_f(self.blocks(self.wte(tokens[:, :-1]) + self.wpe))
        logits = x @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def contenders(config: gpt.Config, text: np.ndarray) -> dict[str, Run]:
    """`torch` trains, `torch-naive` asks for the entropy of each gradient before every update."""
    source = zip(range(jax_steps.BATCHES), jax_steps.windows(config, text, 0), strict=False)
    batches = [torch.from_numpy(b).long() for _, b in source]
    return {"torch": training(config, batches, None), "torch-naive": training(config, batches, jax_steps.Gate())}


def training(config: gpt.Config, batches: list[torch.Tensor], gate: jax_steps.Gate | None) -> Run:
    """A training run; with a gate, statistics come to the host one by one, and it decides before the update."""
    torch.manual_seed(0)
    model = Gpt(config)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate / 10, betas=(0.9, config.b2), fused=True)
    parameters = [*matrices, *vectors]
    done = 0

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).backward()
        accepted = True
        if gate is not None:
            entropies = [entropy(p.grad).item() for p in parameters]
            accepted = gate.accepts(entropies, nn.utils.get_total_norm([p.grad for p in parameters]).item())
        if accepted:
            if config.clip is not None:
                nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()

    def run(steps: int) -> float:
        nonlocal done
        begin = time.perf_counter()
        for _ in range(steps):
            step(batches[done % len(batches)])
            done += 1
        return time.perf_counter() - begin

    return run


def entropy(g: torch.Tensor) -> torch.Tensor:
    """Normalised entropy of the shares of g²."""
    energy = g.square()
    return torch.special.entr(energy / energy.sum()).sum() / math.log(max(g.numel(), 2))
