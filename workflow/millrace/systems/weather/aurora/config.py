"""Parameters of Aurora and its published sizes."""

from dataclasses import dataclass

from millrace.config import check_one_of
from millrace.errors import ConfigError

HEADS = ("residual", "direct")
WEIGHTS = ("pretraining", "fine_tuning", "equal")
LEVELS = 3
"""Resolutions of the backbone."""


@dataclass(frozen=True)
class AuroraConfig:
    """Parameters of Aurora, see config/README.md for what each does."""

    embed_dim: int = 512
    """Channels of a token at the finest resolution, doubled at each coarser one."""
    encoder_depths: tuple[int, int, int] = (6, 10, 8)
    decoder_depths: tuple[int, int, int] = (8, 10, 6)
    """Swin blocks of each resolution, in the order in which they are passed."""
    encoder_heads: tuple[int, int, int] = (8, 16, 32)
    decoder_heads: tuple[int, int, int] = (32, 16, 8)
    perceiver_heads: int = 16
    latent_levels: int = 4
    """Levels of the latent atmosphere, the surface among them."""
    patch_size: int = 4
    window: tuple[int, int, int] = (2, 6, 12)
    """Window of attention along latent levels, latitude and longitude, in tokens."""
    mlp_ratio: float = 4.0
    stabilise_level_agg: bool = True
    """Normalise keys and queries where levels are aggregated: without it the loss of the large model is
    known to spike early at the rate of pre-training."""
    head: str = "residual"
    """``residual``: the network gives changes over the last state; ``direct``: the next state."""
    drop_path: float = 0.0
    """Probability of leaving a block out for a sample, rising linearly to this at the last block."""
    push_forward: bool = False
    """In a rollout (data.output_steps above 1) every step learns from its own error, without gradients
    through the steps before."""
    loss_weights: str = "pretraining"
    """Weights of the variables in the loss ``mae``."""
    lora_rank: int = 0
    """Rank of the low-rank updates of attention (LoRA), which alone are trained then; 0: none."""

    def __post_init__(self) -> None:
        sizes = (self.embed_dim, *self.encoder_depths, *self.decoder_depths, self.patch_size)
        if min(*sizes, *self.window, self.perceiver_heads) < 1 or self.lora_rank < 0:
            raise ConfigError("model: expected sizes, depths and heads of 1 or more")
        if self.latent_levels < 2:
            raise ConfigError(
                f"model.latent_levels: expected 2 or more (one is the surface), got {self.latent_levels}"
            )
        if self.embed_dim % 4:
            raise ConfigError(f"model.embed_dim: expected a multiple of 4, got {self.embed_dim}")
        self._check_heads("encoder_heads", self.encoder_heads, (1, 2, 4))
        self._check_heads("decoder_heads", self.decoder_heads, (4, 2, 1))
        self._check_heads("perceiver_heads", (self.perceiver_heads,), (1,))
        check_one_of("model.head", self.head, HEADS)
        check_one_of("model.loss_weights", self.loss_weights, WEIGHTS)
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path: expected 0 or more, below 1, got {self.drop_path}")

    def _check_heads(self, key: str, heads: tuple[int, ...], widths: tuple[int, ...]) -> None:
        for number, factor in zip(heads, widths, strict=True):
            if number < 1 or (self.embed_dim * factor) % number:
                raise ConfigError(
                    f"model.{key}: {number} heads do not divide the {self.embed_dim * factor} channels of "
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
