"""Pieces of the globe give what the whole globe gives, and take no more memory for a larger one."""

import dataclasses
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from tiers import nightly_for
from torch.utils._pytree import tree_leaves

from millrace.checking.case import Case
from millrace.checking.contracts import OF_MODELS, exports
from millrace.checking.sample_contracts import OF_SAMPLES
from millrace.data.samples import open_dataset
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.systems.downscaling import diffusion, regression
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.ensembles import evaluate
from millrace.systems.downscaling.pieces import divided, seen_by_unet
from millrace.systems.downscaling.sampling import SamplerConfig, expected_grid, sample_grid
from millrace.systems.downscaling.settings import (
    BlockDatasetConfig,
    DownscalerConfig,
    RegressionConfig,
)
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.downscaling.simulator.icosphere import Icosphere

SPLIT = SplitConfig(train=0.5, validation=0.25, gap=0)
UNET = {"channels": (8, 8, 8), "embedding": 8}
MODELS = {
    "unet": (diffusion.SPEC, DownscalerConfig(**UNET)),
    "deep": (diffusion.SPEC, DownscalerConfig(**UNET, depth=2)),
    "mlp": (diffusion.SPEC, DownscalerConfig(architecture="mlp", embedding=8)),
    "mlp of levels": (
        diffusion.SPEC,
        DownscalerConfig(architecture="mlp", embedding=8, noise_levels="block"),
    ),
    "regression": (regression.SPEC, RegressionConfig(channels=(8, 8, 8))),
}


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    """Make `blocks.h5` of R2B03 to R2B05 with blocks of 16 cells, 8 times: (level) -> path."""
    base, made = tmp_path_factory.mktemp("pieces"), {}

    def make(level):
        if level not in made:
            folder = base / str(level)
            write_climate(ClimateConfig(level=level, steps=8, steps_per_file=8), folder / "raw")
            extract_blocks(folder / "raw", folder / "blocks.h5", BlockConfig(levels=2), SPLIT)
            made[level] = folder / "blocks.h5"
        return made[level]

    return make


@pytest.fixture(scope="module")
def blocks(grids):
    return grids(3)


def opened(blocks, piece_blocks=None, **options):
    return BlockDataset(
        blocks, BlockDatasetConfig(season=True, piece_blocks=piece_blocks), **options
    )


def built(name, *datasets):
    """A model, for all of the datasets."""
    spec, config = MODELS[name]
    for dataset in datasets:
        torch.manual_seed(0)
        module = spec.build(config, dataset)
    return spec, config, module.eval()


def in_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value):
        fields = {f.name: in_double(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return replace(value, **fields)
    return value


def cells(dataset, piece, around=False):
    """Cells of a piece on the grid."""
    chosen = dataset.cut(piece).blocks_M if around else dataset.pieces[piece]
    return (chosen[:, None] * 16 + np.arange(16)).ravel()


def samples(dataset, config, noise_1NV, piece=0):
    """A batch of two times with the noise of the whole globe, in double precision."""
    batch = in_double(dataset.at_times(np.array([5, 2]), piece=piece))
    noise_BNV = noise_1NV[:, cells(dataset, piece, around=True)].expand(2, -1, -1)
    sigma_BL = torch.tensor([[0.3], [7.0]], dtype=torch.float64)
    if getattr(config, "noise_levels", "") == "block":
        sigma_BL = sigma_BL * torch.linspace(0.5, 2, 320).double()[dataset.cut(piece).blocks_M]
    return replace(batch, sigma_BL=sigma_BL, noise_BNV=noise_BNV)


@pytest.fixture(scope="module")
def noise(blocks):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 5120, 1, generator=generator, dtype=torch.float64)


def test_pieces_are_compact_of_one_size_and_hold_each_block_once():
    centres = Icosphere.build(3).centres_N3
    pieces = divided(centres, 100)
    assert np.array_equal(np.sort(np.concatenate(pieces)), np.arange(5120))
    assert {len(one) for one in pieces} <= {98, 99}
    for one in pieces:
        middle = centres[one].mean(axis=0)
        farthest = np.linalg.norm(centres[one] - middle, axis=1).max()
        assert farthest < 3 * np.sqrt(4 / len(pieces)), (
            "twice the radius of a cap of its area and less"
        )
        assert (np.diff(one) > 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_network_gives_on_a_piece_what_it_gives_on_the_globe(blocks, noise, name):
    whole, parted = opened(blocks), opened(blocks, 50)
    _, config, module = built(name, whole, parted)
    module.double()
    assert len(parted.pieces) == 7
    with torch.no_grad():
        expected = module(samples(whole, config, noise))
        for piece in range(7):
            batch = samples(parted, config, noise, piece)
            own, around = cells(parted, piece), batch.y_BNV.shape[1]
            assert len(own) < around < 5120
            found = batch.geometry.own(module(batch))
            assert (found - expected[:, own]).abs().max() < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_piece_are_those_of_its_cells_on_the_globe(blocks, noise, name):
    whole, parted = opened(blocks), opened(blocks, 50)
    spec, config, module = built(name, whole, parted)
    module.double()
    batch, sums = samples(whole, config, noise), 0
    everywhere = module(batch) - batch.y_BNV
    if spec is diffusion.SPEC:
        weight_BL = diffusion.loss_weight(batch.sigma_BL) * diffusion.SIGMA_DATA**2
        everywhere = diffusion.scaled(everywhere, weight_BL.sqrt())
    for piece in range(7):
        chosen = everywhere[:, cells(parted, piece)].square()
        # In units of an average piece, so that the mean over pieces is the loss of the globe.
        wanted = chosen.sum() * 7 / 5120
        loss_B = spec.loss(module, samples(parted, config, noise, piece), None)
        found, expected = (
            torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
            for loss in (loss_B.sum(), wanted)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        sums = sums + loss_B.detach() / 7
    torch.testing.assert_close(sums, spec.loss(module, batch, None).detach())


def test_ensembles_in_pieces_are_those_of_the_globe_seams_included(blocks):
    whole, parted = opened(blocks), opened(blocks, 50)
    _, _, module = built("unet", whole, parted)
    config = SamplerConfig(members=2, steps=4)
    expected, found = (sample_grid(module, one, config, 6) for one in (whole, parted))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    beside = whole.neighbours[0]
    piece = np.empty(320, int)
    for number, own in enumerate(parted.pieces):
        piece[own] = number
    seam = (piece[beside // 16] != piece[np.arange(5120) // 16, None]).any(axis=1)
    jumps = [x[:, beside[seam]] - x[:, seam][:, :, None] for x in (expected, found)]
    assert seam.sum() > 200
    assert (jumps[0] - jumps[1]).abs().max() < 1e-5 * expected.abs().max()


def test_a_solver_makes_samples_once_and_no_transposes(blocks, monkeypatch):
    dataset = opened(blocks, 50, cache_bytes=0)
    _, _, module = built("unet", dataset)
    made, at_times = [], dataset.at_times
    monkeypatch.setattr(
        dataset, "at_times", lambda *a, **k: made.append(k["piece"]) or at_times(*a, **k)
    )
    config = SamplerConfig(members=1, steps=3)
    expected = sample_grid(module, dataset, config, 6)
    assert made == list(range(7))
    sizes = [size_of(dataset.geometry(6).levels)]
    dataset.surround(lambda blocks, _: blocks)  # forget matrices
    built("unet", dataset)
    sizes.append(size_of(dataset.geometry(6).levels))
    assert sizes[0] < 0.6 * sizes[1], "gradients need transposes"
    monkeypatch.setattr("millrace.systems.downscaling.sampling.HELD_BYTES", 0)
    assert torch.equal(sample_grid(module, dataset, config, 6), expected)
    assert made == list(range(7)) * 5


def test_a_regression_in_pieces_is_that_of_the_globe(blocks):
    whole, parted = opened(blocks), opened(blocks, 50)
    _, _, module = built("regression", whole, parted)
    with torch.no_grad():
        expected, found = (expected_grid(module, one, 6) for one in (whole, parted))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_in_pieces_are_those_of_the_globe(blocks):
    whole, parted = opened(blocks), opened(blocks, 50)
    _, _, module = built("unet", whole, parted)
    config = SamplerConfig(members=2, steps=3)
    one, other = (evaluate(module, d, "test", config, times=1)[0]["tas"] for d in (whole, parted))
    for name, scores in one.items():
        for key in ("crps", "rmse", "lag1", "seam_error", "energy_score"):
            assert other[name][key] == pytest.approx(scores[key], rel=1e-4), (name, key)


def test_samples_are_the_same_read_or_kept_and_those_of_the_globe(blocks):
    whole = opened(blocks)
    kept, read = opened(blocks, 50), opened(blocks, 50, cache_bytes=0)
    index = np.array([3, 0, 3])
    everywhere = whole.batch("train", 0, index)
    for one in (kept, read):
        built("unet", one)
        for piece in (0, 4):
            batch = one.batch("train", piece, index)
            chosen = cells(one, piece, around=True)
            assert torch.equal(batch.y_BNV, everywhere.y_BNV[:, chosen])
            assert torch.equal(batch.coarse_BMV, everywhere.coarse_BMV[:, chosen[::16] // 16])
            assert torch.equal(batch.features_BNF, everywhere.features_BNF[:, chosen])
            static = whole.geometry().static_NF[chosen]
            assert torch.equal(batch.geometry.static_NF, static)
    assert kept.groups("train").tolist() == [4] * 7


def test_a_sample_reads_its_blocks_alone(grids, blocks, tmp_path, monkeypatch):
    for module in ("data.hdf5", "systems.downscaling.blocks"):
        monkeypatch.setattr(f"millrace.{module}.CHUNK_BYTES", 1024)
    path = tmp_path / "blocks.h5"
    extract_blocks(blocks.parent / "raw", path, BlockConfig(levels=2), SPLIT)
    dataset = opened(path, 20, cache_bytes=0)
    built("unet", dataset)
    seen = dataset.cut(0).blocks_M
    expected = dataset.at_times(np.array([1]))
    with h5py.File(path) as file:
        assert file["fine"].chunks == (1, 256, 1)
        far = np.setdiff1d(np.arange(320) // 16, seen // 16)
        at = [file["fine"].id.get_chunk_info_by_coord((1, 256 * n, 0)).byte_offset for n in far]
    assert len(at)
    content = bytearray(path.read_bytes())
    for offset in at:
        content[offset + 10] ^= 1
    path.write_bytes(content)
    assert torch.equal(dataset.at_times(np.array([1])).y_BNV, expected.y_BNV)
    with pytest.raises(DataError, match="truncated or damaged"):
        opened(path, cache_bytes=0).at_times(np.array([1]))


def size_of(value):
    """Bytes of the tensors of a batch, its matrices included."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, tuple | dict):
        return sum(map(size_of, value.values() if isinstance(value, dict) else value))
    return size_of(vars(value)) if hasattr(value, "__dict__") else 0


@pytest.mark.slow
def test_memory_of_a_sample_does_not_grow_with_the_grid(grids):
    sizes, wholes = [], []
    for level in (3, 4, 5):
        dataset = opened(grids(level), 40, cache_bytes=0)
        built("unet", dataset)
        made = [dataset.at_times(np.array([0]), piece=piece) for piece in range(0, 8, 2)]
        sizes.append(max(map(size_of, made)))
        tensors = [x for x in tree_leaves(made[0]) if isinstance(x, torch.Tensor)]
        assert sum(x.nbytes for x in tensors) == size_of(made[0]), "what planning counts"
        wholes.append(size_of(opened(grids(level), cache_bytes=0).at_times(np.array([0]))))
    assert wholes[2] > 3.9 * wholes[1] > 15 * wholes[0]
    assert max(sizes) < 1.2 * min(sizes)  # around a piece of R2B03 is half the globe
    assert max(sizes) < 0.05 * wholes[2]


def test_several_datasets_as_one_have_pieces_each(blocks, grids):
    joint = open_dataset(
        "blocks", {"blocks": [blocks, grids(4)]}, {"piece_blocks": 100}, torch.device("cpu")
    )
    assert len(joint.groups("train")) == 4 + 13
    built("regression", joint)
    batch, other = (joint.batch("train", group, np.array([1])) for group in (3, 4))
    assert batch.geometry.n_own == 80 < batch.geometry.n_blocks
    assert 90 < other.geometry.n_own < other.geometry.n_blocks
    assert torch.equal(other.y_BNV, joint.datasets[1].batch("train", 0, np.array([1])).y_BNV)


def test_few_geometries_are_kept(blocks):
    dataset = opened(blocks, 50)
    built("unet", dataset)
    first = dataset.geometry(0)
    assert dataset.geometry(0) is first
    for piece in (1, 2):
        dataset.geometry(piece)
    assert dataset.geometry(0) is not first


def test_another_network_forgets_what_the_first_one_saw(blocks):
    dataset = opened(blocks, 20)
    sizes = []
    for name in ("mlp", "unet", "mlp"):
        built(name, dataset)
        sizes.append(dataset.at_times(np.array([0])).geometry.n_blocks)
    assert sizes[0] == sizes[2] < sizes[1]


def test_old_runs_stay_what_they_were(blocks):
    assert "piece_blocks" not in opened(blocks).definition
    assert opened(blocks, 50).definition["piece_blocks"] == 50
    with pytest.raises(
        ConfigError, match=r"data\.piece_blocks: expected a whole number of 1 or more"
    ):
        BlockDatasetConfig.parse({"piece_blocks": 0}, "data")


def test_a_deeper_network_sees_more():
    grids = [Icosphere.build(4 - level).neighbours_N3 for level in range(3)]
    few, more = (len(seen_by_unet(np.array([7]), grids, depth)) for depth in (1, 2))
    assert 30 < few < more < 100


@pytest.mark.parametrize(
    "contract",
    nightly_for([*OF_SAMPLES[:2], *OF_MODELS], lambda one: one is exports),
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize(
    "model",
    [
        {"name": "downscaler", "channels": [8, 8, 8]},
        {"name": "downscaler", "architecture": "mlp", "noise_levels": "block"},
        {"name": "regression", "channels": [8, 8, 8]},
    ],
    ids=["downscaler", "mlp of levels", "regression"],
)
def test_contracts_hold_in_pieces(blocks, tmp_path, model, contract):
    definition = {
        "data": {"piece_blocks": 50},
        "model": model,
        "train": {"global_batch": 3, "learning_rate": 3e-3},
    }
    contract(Case(definition, {"blocks": str(blocks)}, tmp_path))
