"""The published implementation of Aurora with the same weights gives the same forecast.

Runs where `microsoft-aurora` can be imported; Millrace does not need it.
"""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.aurora.model import Aurora
from millrace.systems.weather.aurora.perceiver import Grid
from millrace.systems.weather.dataset import WeatherBatch

published = pytest.importorskip(
    "aurora", reason="microsoft-aurora is not installed", exc_type=ImportError
)

SURFACE, STATIC, AIR = ("2t", "10u", "10v", "msl"), ("lsm", "z", "slt"), ("z", "u", "v", "t", "q")
LEVELS = (250, 500, 850, 1000)
# Tokens at the three resolutions: 8 x 16, 4 x 8, 2 x 4. Windows divide them, since the two programs
# pad at different sides.
ROWS, COLUMNS, PATCH, WIDTH, STEPS = 32, 64, 4, 64, 2
DEPTHS, HEADS, WINDOW = (2, 3, 2), (2, 4, 8), (2, 4, 4)
TIMES = (datetime(2020, 2, 29, 12, tzinfo=UTC), datetime(2021, 7, 1, 18, tzinfo=UTC))


def perturbed(model):
    """Away from the initial weights, where blocks vanish."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(params=[False, True], ids=["plain", "stabilised"])
def theirs(request):
    torch.manual_seed(0)
    model = published.Aurora(
        surf_vars=SURFACE,
        static_vars=STATIC,
        atmos_vars=AIR,
        window_size=WINDOW,
        encoder_depths=DEPTHS,
        encoder_num_heads=HEADS,
        decoder_depths=DEPTHS,
        decoder_num_heads=HEADS[::-1],
        latent_levels=4,
        patch_size=PATCH,
        embed_dim=WIDTH,
        num_heads=4,
        enc_depth=1,
        stabilise_level_agg=request.param,
        use_lora=False,
        autocast=False,
    )
    return perturbed(model)


@pytest.fixture
def state():
    """A batch of the published program, in physical units."""
    generator = torch.Generator().manual_seed(2)

    def noise(*shape):
        return torch.randn(*shape, ROWS, COLUMNS, generator=generator)

    dimensions = (len(TIMES), STEPS, len(LEVELS))
    batch = published.Batch(
        {name: noise(*dimensions[:2]) for name in SURFACE},
        {name: noise() for name in STATIC},
        {name: noise(*dimensions) for name in AIR},
        published.Metadata(
            lat=torch.linspace(88, -88, ROWS),
            lon=torch.arange(COLUMNS) * 360.0 / COLUMNS,
            time=TIMES,
            atmos_levels=LEVELS,
        ),
    )
    return batch.unnormalise(surf_stats={})


def channels(batch):
    """Normalised channels in our order, [B, T, C, I, J]."""
    batch = batch.normalise(surf_stats={})
    surface = torch.stack(list(batch.surf_vars.values()), dim=2)
    return torch.cat([surface, *batch.atmos_vars.values()], dim=2)


def our_model(theirs, batch):
    from aurora.model.fourier import pos_expansion, scale_expansion
    from aurora.model.posencoding import pos_scale_enc

    config = AuroraConfig(
        embed_dim=WIDTH,
        encoder_depths=DEPTHS,
        decoder_depths=DEPTHS,
        encoder_heads=HEADS,
        decoder_heads=HEADS[::-1],
        perceiver_heads=4,
        window=WINDOW,
        stabilise_level_agg=hasattr(theirs.encoder.level_agg.layers[0][0].ln_k, "weight"),
        head="direct",
    )
    # They encode the root of an area between centres of cells, we the area of the patch.
    position, scale = pos_scale_enc(
        WIDTH,
        batch.metadata.lat,
        batch.metadata.lon,
        PATCH,
        pos_expansion=pos_expansion,
        scale_expansion=scale_expansion,
    )
    static = torch.stack(list(batch.normalise(surf_stats={}).static_vars.values()))
    grid = Grid(position, scale, torch.tensor(LEVELS).double(), static, len(SURFACE), len(AIR), 6.0)
    model = Aurora(config, grid, (ROWS, COLUMNS), STEPS, torch.ones(1)).eval()
    model.load_state_dict(our_weights(theirs, model))
    return model


def our_weights(theirs, ours):
    """Weights of the published program under our names and in our order."""
    given = dict(theirs.state_dict())
    weights = {}

    def move(name, *sources, change=torch.cat):
        for kind in ("weight", "bias"):
            if f"{sources[0]}.{kind}" in given:
                weights[f"{name}.{kind}"] = change([given.pop(f"{s}.{kind}") for s in sources])

    def tokens(name, source, names):
        kernels = [given.pop(f"{source}.weights.{n}") for n in names]
        weights[f"{name}.weight"] = torch.cat(kernels, dim=1).transpose(1, 2).flatten(1)
        weights[f"{name}.bias"] = given.pop(f"{source}.bias")

    def aggregation(name, source):
        for ours_, number in (("to_q", "0.to_q"), ("to_kv", "0.to_kv"), ("to_out", "0.to_out")):
            move(f"{name}.{ours_}", f"{source}.{number}")
        for ours_, number in (("norm_q", "0.ln_q"), ("norm_k", "0.ln_k")):
            move(f"{name}.{ours_}", f"{source}.{number}")
        # The same shift of all keys changes nothing: ours has none.
        weights.pop(f"{name}.norm_k.bias", None)
        for ours_, number in (("fc1", "1.net.0"), ("fc2", "1.net.2")):
            move(f"{name}.mlp.{ours_}", f"{source}.{number}")
        move(f"{name}.norm1", f"{source}.2")
        move(f"{name}.norm2", f"{source}.3")

    def block(name, source):
        for linear in ("qkv", "proj"):
            move(f"{name}.attention.{linear}", f"{source}.attn.{linear}")
        for linear in ("fc1", "fc2"):
            move(f"{name}.mlp.{linear}", f"{source}.mlp.{linear}")
        for norm in ("norm1", "norm2"):
            # Shift before scale there, scale before shift here.
            move(
                f"{name}.{norm}.modulation",
                f"{source}.{norm}.ln_modulation.1",
                change=lambda found: torch.cat(found[0].chunk(2)[::-1]),
            )

    tokens("encoder.surface_tokens", "encoder.surf_token_embeds", SURFACE + STATIC)
    tokens("encoder.air_tokens", "encoder.atmos_token_embeds", AIR)
    weights["encoder.surface_level"] = given.pop("encoder.surf_level_encoding")
    weights["encoder.latents_PD"] = given.pop("encoder.atmos_latents")
    move("encoder.surface_norm", "encoder.surf_norm")
    for linear, number in (("fc1", "net.0"), ("fc2", "net.2")):
        move(f"encoder.surface_mlp.{linear}", f"encoder.surf_mlp.{number}")
    aggregation("encoder.aggregation", "encoder.level_agg.layers.0")
    for name, source in (("position", "pos"), ("level", "atmos_levels")):
        move(f"encoder.embedding.{name}", f"encoder.{source}_embed")
    for name in ("scale", "lead_time", "absolute_time"):
        move(f"encoder.embedding.{name}", f"encoder.{name}_embed")
    for index in (0, 2):
        move(f"encoder.time_mlp.{index}", f"backbone.time_mlp.{index}")

    number = 0
    for half in ("encoder", "decoder"):
        for level, depth in enumerate(DEPTHS):
            for index in range(depth):
                block(f"blocks.{number}", f"backbone.{half}_layers.{level}.blocks.{index}")
                number += 1
            if level < 2 and half == "encoder":
                for linear in ("reduction", "norm"):
                    source = f"backbone.encoder_layers.{level}.downsample.{linear}"
                    move(f"blocks.{number}.{linear}", source)
            elif level < 2:
                for linear, source in (("expansion", "lin1"), ("norm", "norm"), ("mixing", "lin2")):
                    source = f"backbone.decoder_layers.{level}.upsample.{source}"
                    move(f"blocks.{number}.{linear}", source)
            number += level < 2

    move("decoder.level", "decoder.atmos_levels_embed")
    aggregation("decoder.aggregation", "decoder.level_decoder.layers.0")
    for name, source, names in (("surface", "surf", SURFACE), ("air", "atmos", AIR)):
        move(f"decoder.{name}_head", *[f"decoder.{source}_heads.{n}" for n in names])
    assert not given, "every weight is used"
    assert weights.keys() == ours.state_dict().keys()
    return weights


def test_same_weights_same_forecast(theirs, state):
    ours = our_model(theirs, state)
    batch = WeatherBatch(
        past_BTCIJ=channels(state),
        hours_B=torch.tensor([t.timestamp() / 3600 for t in TIMES], dtype=torch.float64),
        y_BKCIJ=torch.zeros(len(TIMES), 1, len(SURFACE) + len(AIR) * len(LEVELS), ROWS, COLUMNS),
        scale_V=torch.ones(1),
        weight_B=torch.ones(len(TIMES)),
    )
    with torch.no_grad():
        forecast, expected = ours(batch), channels(theirs(state))
    assert np.isfinite(expected.numpy()).all()
    assert expected.std() > 0.1
    assert (forecast - expected).abs().max() <= 3e-6 * expected.abs().max()
