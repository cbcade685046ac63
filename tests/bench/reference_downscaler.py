"""The downscaler that Millrace's descends from, rebuilt from its description: what is to be beaten.

Blocks of 256 cells, each alone; the context are seven block means, next to each other by number. A context
network 7 -> 256 -> 256, an embedding of the step, a denoiser 768 -> 512 -> 512 -> 256 -> 256; noise is
predicted, beta runs linearly from 1e-4 to 0.02 in 50 steps, samples are drawn step by step from
normal noise. Batches of 16, Adam at 1e-4, gradients clipped at 1, the loss fetched at every step.

Shape suffixes: S samples (blocks at times), C cells of a block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

STEPS, BATCH = 50, 16
BETA = torch.linspace(1e-4, 0.02, STEPS)
ALPHA_BAR = torch.cumprod(1 - BETA, 0)


class ReferenceNet(nn.Module):
    """Noise in a block, given its noisy cells, the context and the step.

    ``level`` is what embeds the step, or a noise level, as so many numbers.
    """

    def __init__(
        self, context: int = 7, level: nn.Module | None = None, numbers: int = 256
    ) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.Linear(context, 256), nn.ReLU(), nn.Linear(256, 256))
        self.time = level or nn.Embedding(STEPS, numbers)
        self.denoise = nn.Sequential(
            nn.Linear(512 + numbers, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256),
        )  # fmt: skip

    def forward(self, x_SC: Tensor, context_S7: Tensor, step_S: Tensor) -> Tensor:
        return self.denoise(torch.cat([x_SC, self.context(context_S7), self.time(step_S)], dim=1))


@dataclass
class Reference:
    """Network, optimiser and the statistics it normalises with."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        self.net = ReferenceNet()
        self.optimiser = torch.optim.Adam(self.net.parameters(), 1e-4)

    def epoch(self, fine_SC: Tensor, context_S7: Tensor) -> float:
        """Train on normalised samples once; returns the mean loss."""
        order, total = torch.randperm(len(fine_SC)), 0.0
        batches = order.split(BATCH)
        for chosen in batches:
            x_SC = fine_SC[chosen]
            step_S = torch.randint(0, STEPS, (len(chosen),))
            share = ALPHA_BAR[step_S, None]
            noise = torch.randn_like(x_SC)
            noisy = share.sqrt() * x_SC + (1 - share).sqrt() * noise
            loss = (self.net(noisy, context_S7[chosen], step_S) - noise).square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimiser.step()
            total += loss.item()
        return total / len(batches)

    @torch.no_grad()
    def sample(self, context_S7: Tensor) -> Tensor:
        """Ancestral sampling from pure noise, normalised, [S, C]."""
        x_SC = torch.randn(len(context_S7), 256)
        for step in reversed(range(STEPS)):
            step_S = torch.full((len(x_SC),), step)
            noise = self.net(x_SC, context_S7, step_S)
            x_SC = x_SC - BETA[step] / (1 - ALPHA_BAR[step]).sqrt() * noise
            x_SC = x_SC / (1 - BETA[step]).sqrt()
            if step:
                x_SC = x_SC + BETA[step].sqrt() * torch.randn_like(x_SC)
        return x_SC

    def normalised(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy((values - self.mean) / self.std).float()


def context_of(coarse_TM: np.ndarray) -> np.ndarray:
    """Means of a block and of three blocks on either side by number, [T, M, 7]."""
    return np.stack([np.roll(coarse_TM, shift, axis=1) for shift in range(-3, 4)], axis=2)
