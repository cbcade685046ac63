"""Parameters of Aurora and its published sizes."""

from typing import Any, Literal

from millrace.config import Count, Settings, option

LEVELS = 3
"""Resolutions of the backbone."""
Levels = tuple[Count, Count, Count]


class AuroraConfig(Settings):
    """Aurora; the defaults are those of the published large model (1.26 G parameters).

    The small one (113 M) is in `config/experiments/weather.yaml`. Rows and columns of the grid are
    multiples of `patch_size`; of files with both poles the last row is left out, and areas are cut to
    multiples of 4. In an area nothing is exchanged between its east and its west.
    """

    embed_dim: int = option(512, ge=4, le=10**6, multiple_of=4)
    """Channels of a token at the finest resolution, a multiple of 4; twice and four times that at coarser
    ones. 256 for the small model."""
    encoder_depths: Levels = (6, 10, 8)
    """Swin blocks on the way to the coarsest resolution."""
    decoder_depths: Levels = (8, 10, 6)
    """Swin blocks on the way back."""
    encoder_heads: Levels = (8, 16, 32)
    """Heads of attention, divisors of the channels there."""
    decoder_heads: Levels = (32, 16, 8)
    """The same on the way back."""
    perceiver_heads: Count = 16
    """Heads where levels are aggregated and taken apart."""
    latent_levels: int = option(4, ge=2, le=10**4)
    """Levels that the atmosphere is aggregated to, one of them the surface."""
    patch_size: Count = option(4, unit="cells")
    """Edge of a token."""
    window: Levels = option((2, 6, 12), unit="tokens")
    """Window of attention along latent levels, latitude and longitude; smaller for small grids."""
    mlp_ratio: float = option(4.0, gt=0)
    """Width of the MLP over that of its block."""
    stabilise_level_agg: bool = True
    """Normalise keys and queries where levels are aggregated: without it the loss of the large model is
    known to spike early at the rate of pre-training."""
    head: Literal["residual", "direct"] = "residual"
    """`residual`: the network gives changes over the last state; `direct`: the next state."""
    conventions: Literal["own", "published"] = "own"
    """`published`: fields are normalised, places encoded and windows padded within the network as for the
    weights that Microsoft published, for `train.init_from.published`; take `head: direct` and
    `stabilise_level_agg: false` with it. Samples, losses and scores stay as they are."""
    drop_path: float = option(0.0, ge=0, lt=1)
    """Probability of leaving a block out for a sample, rising linearly to this at the last block; 0.2
    at full size."""
    push_forward: bool = False
    """With `data.output_steps` above 1: every step learns from its own error, without gradients through the
    steps before; if training on rollouts is unstable."""
    loss_weights: Literal["pretraining", "fine_tuning", "equal"] = "pretraining"
    """Weights of the variables in the loss `mae`."""
    lora_rank: int = option(0, ge=0, le=10**6)
    """Rank of the low-rank updates of attention (LoRA), which alone are trained then, for fine-tuning from
    `init_from`; 0: none."""

    def model_post_init(self, _: Any) -> None:
        """Check that heads divide the channels of their blocks."""
        self._check_heads("encoder_heads", self.encoder_heads, (1, 2, 4))
        self._check_heads("decoder_heads", self.decoder_heads, (4, 2, 1))
        self._check_heads("perceiver_heads", (self.perceiver_heads,), (1,))

    def _check_heads(self, key: str, heads: tuple[int, ...], widths: tuple[int, ...]) -> None:
        for number, factor in zip(heads, widths, strict=True):
            if (self.embed_dim * factor) % number:
                raise ValueError(
                    f"{key}: {number} heads do not divide the {self.embed_dim * factor} channels of "
                    "their blocks; take divisors"
                )

    @property
    def attention_heads(self) -> tuple[int, ...]:
        """Heads of the backbone's blocks at every resolution: what tensor parallelism divides."""
        return (*self.encoder_heads, *self.decoder_heads)

    @property
    def swin_blocks(self) -> int:
        """Blocks of the backbone: what a pipeline divides."""
        return sum(self.encoder_depths) + sum(self.decoder_depths)


LARGE = AuroraConfig()
SMALL = AuroraConfig(
    embed_dim=256,
    encoder_depths=(2, 6, 2),
    decoder_depths=(2, 6, 2),
    encoder_heads=(4, 8, 16),
    decoder_heads=(16, 8, 4),
    perceiver_heads=8,
)
TINY = AuroraConfig(
    embed_dim=32,
    encoder_depths=(1, 2, 1),
    decoder_depths=(1, 2, 1),
    encoder_heads=(2, 4, 8),
    decoder_heads=(8, 4, 2),
    perceiver_heads=2,
    window=(2, 4, 4),
)
PUBLISHED = {"large": (LARGE, 1_256e6), "small": (SMALL, 112.8e6), "tiny": (TINY, 0.87e6)}
"""Configurations and their numbers of parameters: Bodnar et al. 2025 (Nature 641), and the tests' size."""
