"""What kernels of Triton compute, interpreted or on a GPU; run by `test_triton_sums`."""

import numpy as np
import pytest
import torch

from millrace.data.samples import open_dataset
from millrace.systems.groundwater import gno, triton_sums
from millrace.systems.groundwater.gino import SPEC, GinoConfig
from millrace.systems.groundwater.gno import NeighbourTable
from millrace.systems.groundwater.triton_sums import edge_products, kernel_sum, row_sums

DEVICE = torch.device("cpu" if triton_sums.INTERPRETED else "cuda")
SIZES = {  # points, counts of neighbours, samples, channels
    "usual": (9, [3, 8, 1, 5], 3, 8),
    "rows without edges": (5, [0, 2, 0, 0, 4, 0], 2, 6),
    "long rows": (40, [17, 33], 2, 3),
    "no edges": (4, [0, 0, 0], 2, 3),
    "no output points": (4, [], 2, 3),
    "one of each": (1, [1], 1, 1),
    "one sample": (6, [2, 4], 1, 5),
    "one channel": (6, [2, 4], 5, 1),
    "several blocks of a row": (4, [3, 2], 5, 67),
    "several blocks of channels": (3, [2, 1], 2, 150),
    "many edges": (30, [9] * 15, 2, 2),
}
CUDA = {"device": DEVICE}


def case(size, kernel_type=torch.float32, f_type=torch.float32):
    """Kernel, function and table; weights of the sums."""
    points, counts, samples, channels = SIZES[size]
    torch.manual_seed(0)
    indptr = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    index = torch.randint(0, points, (int(indptr[-1]),))
    table = NeighbourTable.of(indptr, index, points).to(DEVICE)
    kernel = torch.randn(len(index), channels, **CUDA).to(kernel_type).requires_grad_()
    f = torch.randn(points, samples, channels, **CUDA).to(f_type).requires_grad_()
    return kernel, f, table, torch.randn(len(counts), samples, channels, **CUDA)


def dense(kernel, f, table):
    """Sums by products of whole matrices."""
    rows = (table.row[:, None] == torch.arange(len(table.indptr) - 1, **CUDA)).to(f.dtype)
    return torch.einsum("em,ec,ebc->mbc", rows, kernel, f[table.index])


def with_gradients(sums, kernel, f, weight):
    out = sums(kernel, f)
    return out, *torch.autograd.grad((out * weight).sum(), (kernel, f))


def relative(found, expected):
    assert found.shape == expected.shape
    if not found.numel():
        return 0.0
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_gradients_are_those_of_dense_matrices(size):
    kernel, f, table, weight = case(size)
    found = with_gradients(lambda k, g: kernel_sum(k, g, table), kernel, f, weight)
    kernel, f = (one.detach().double().requires_grad_() for one in (kernel, f))
    expected = with_gradients(lambda k, g: dense(k, g, table), kernel, f, weight.double())
    for mine, its in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, its) < 1e-6


@pytest.mark.parametrize("size", ["rows without edges", "long rows", "several blocks of a row"])
def test_sums_and_gradients_are_those_of_bags(size):
    kernel, f, table, weight = case(size)

    def bags(k, g):
        return gno.kernel_sum(k.t(), g.permute(2, 0, 1), table).permute(1, 2, 0)

    found = with_gradients(lambda k, g: kernel_sum(k, g, table), kernel, f, weight)
    for mine, its in zip(found, with_gradients(bags, kernel, f, weight), strict=True):
        assert relative(mine, its) < 1e-6


@pytest.mark.parametrize(
    ("kernel_type", "f_type"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_half_precision_is_read_and_not_summed(kernel_type, f_type):
    kernel, f, table, weight = case("long rows", kernel_type, f_type)
    out, *gradients = with_gradients(lambda k, g: kernel_sum(k, g, table), kernel, f, weight)
    of = [one.detach().double().requires_grad_() for one in (kernel, f)]
    exact, *expected = with_gradients(lambda k, g: dense(k, g, table), *of, weight.double())
    assert out.dtype == torch.float32
    assert relative(out, exact) < 1e-6
    for mine, its, of in zip(gradients, expected, (kernel, f), strict=True):
        assert mine.dtype == of.dtype
        assert relative(mine, its) < max(1e-6, torch.finfo(of.dtype).eps)
    g = weight.to(f_type)
    products = edge_products(g, f, table.row, table.index)
    expected = (g[table.row].double() * f[table.index].double()).sum(1)
    assert relative(products, expected) < 1e-6


def test_gradients_match_finite_differences():
    kernel, f, table, _ = case("rows without edges", torch.float64, torch.float64)
    assert torch.autograd.gradcheck(
        lambda k, g: kernel_sum(k, g, table), (kernel, f), fast_mode=True
    )


def test_layouts_in_memory_do_not_matter():
    kernel, f, table, weight = case("usual")
    turned = f.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    wide = torch.stack([kernel, kernel], dim=2)[:, :, 0]
    assert not any(one.is_contiguous() for one in (turned, wide))
    assert torch.equal(kernel_sum(wide, turned, table), kernel_sum(kernel, f, table))
    g = weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    found, same = (
        torch.autograd.grad(kernel_sum(kernel, f, table), (kernel, f), one) for one in (g, weight)
    )
    assert all(map(torch.equal, found, same))


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch):
    kernel, f, table, _ = case("usual")
    calls = []
    for name in ("edge_products", "row_sums"):
        real = getattr(triton_sums, name)
        monkeypatch.setattr(
            triton_sums, name, lambda *a, real=real, name=name: calls.append(name) or real(*a)
        )
    kernel_sum(kernel.detach(), f, table).sum().backward()
    kernel_sum(kernel, f.detach(), table).sum().backward()
    assert calls == ["row_sums", "row_sums", "row_sums", "edge_products"]


def test_gradients_are_deterministic():
    kernel, f, table, weight = case("many edges")
    runs = [
        with_gradients(lambda k, g: kernel_sum(k, g, table), kernel, f, weight) for _ in range(3)
    ]
    for first, *others in zip(*runs, strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_places_beyond_32_bits(monkeypatch):
    """Only what is read of these 4 GiB is there: a copy onto itself would fill the memory."""
    copy = torch.UntypedStorage.copy_
    monkeypatch.setattr(
        torch.UntypedStorage,
        "copy_",
        lambda to, of: to if to.data_ptr() == of.data_ptr() else copy(to, of),
    )
    rows, channels = 2**25 + 2, 64
    large = torch.from_numpy(np.zeros((rows, channels), dtype=np.float16)).to(DEVICE)
    large[-2:] = torch.randn(2, channels, **CUDA)
    first, second = large[-2:].double()
    assert (rows - 2) * channels == 2**31
    index = torch.from_numpy(np.zeros(rows, dtype=np.int64)).to(DEVICE)
    index[-2:] = torch.tensor([rows - 1, rows - 2])
    indptr = torch.tensor([rows - 2, rows], **CUDA)
    f = large[:, None]
    empty = index[:0]
    twice = row_sums(large, f, indptr, index, empty, empty, empty, False)
    assert relative(twice[0, 0], 2 * first * second) < 1e-6
    turned = row_sums(large, f, empty, empty, index, indptr, index, True)
    assert relative(turned[0, 0], 2 * first * second) < 1e-6
    ends = index[-2:]
    assert relative(edge_products(f, f, ends, ends)[1], first * first) < 1e-6


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiler_sees_one_graph(dynamic):
    kernel, f, table, weight = case("usual")

    def around(k, g):
        return kernel_sum(k.sin(), g.cos(), table).tanh()

    backend = "aot_eager" if triton_sums.INTERPRETED else "inductor"
    compiled = torch.compile(around, fullgraph=True, backend=backend, dynamic=dynamic)
    found = with_gradients(compiled, kernel, f, weight)
    for mine, its in zip(found, with_gradients(around, kernel, f, weight), strict=True):
        assert relative(mine, its) < 1e-6


def test_operations_are_registered_as_pytorch_wants_them():
    kernel, f, table, _ = case("usual")
    places = (table.indptr, table.index, table.row, table.transposed_indptr, table.transposed_edge)
    for transposed in (False, True):
        of = f if not transposed else torch.randn(len(table.indptr) - 1, *f.shape[1:], **CUDA)
        torch.library.opcheck(row_sums, (kernel.detach(), of.detach(), *places, transposed))
    torch.library.opcheck(row_sums, (kernel, f, *places, False))
    g = torch.randn(len(table.indptr) - 1, *f.shape[1:], **CUDA)
    torch.library.opcheck(edge_products, (g, f.detach(), table.row, table.index))


def test_gino_as_one_graph_gives_the_same_numbers(samples, definition, monkeypatch):
    dataset = open_dataset("patches", samples, definition["data"], DEVICE)
    model = {key: value for key, value in definition["model"].items() if key != "name"}
    batch = dataset.batch("train", 1, np.arange(3))
    found = []
    for sums in ("bags", "triton"):
        torch.manual_seed(0)
        config = GinoConfig.parse(model | {"kernel_sums": sums}, "model")
        SPEC.check(config, DEVICE)
        network = SPEC.build(config, dataset).to(DEVICE)
        assert (network.sums(DEVICE) is kernel_sum) == (sums == "triton")
        if sums == "triton":
            network.compile(backend="eager", fullgraph=True)
        forecast = network(batch)
        forecast.square().sum().backward()
        found.append([forecast, *(one.grad for one in network.parameters())])
    for bags, triton in zip(*found, strict=True):
        assert relative(triton, bags) < 1e-5
    # Programs run where Triton is not.
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert network.sums(DEVICE) is None
