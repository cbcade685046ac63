"""Products with constant sparse matrices are those of scipy, and so are their gradients."""

import numpy as np
import pytest
import torch
from scipy.sparse import random_array

from millrace.systems.downscaling.sparse import SparseMatrix

CPU = torch.device("cpu")


@pytest.fixture
def matrix():
    return random_array((7, 5), density=0.4, rng=np.random.default_rng(0)).tocsr()


@pytest.mark.parametrize("samples", [1, 3])
def test_product_is_that_of_scipy(matrix, samples):
    x = torch.randn(samples, 5, 4, generator=torch.Generator().manual_seed(0))
    product = SparseMatrix(matrix, CPU)(x)
    expected = np.stack([matrix @ one for one in x.numpy()])
    assert product.numpy() == pytest.approx(expected, abs=1e-6)


def test_a_transpose_is_made_for_a_gradient_alone(matrix):
    product = SparseMatrix(matrix, CPU)
    x = torch.randn(1, 5, 4, requires_grad=True)
    made = product(x).sum()
    assert len(product.tensors()) == 3
    made.backward()
    assert len(product.tensors()) == 6


def test_places_that_32_bits_cannot_count(matrix, monkeypatch):
    x = torch.randn(3, 5, 4)
    expected = SparseMatrix(matrix, CPU)(x)
    for most, kinds in ((30, {torch.int32, torch.int64}), (6, {torch.int64})):
        monkeypatch.setattr("millrace.systems.downscaling.sparse.MANY", most)
        product = SparseMatrix(matrix, CPU)
        assert torch.equal(product(x), expected)
        found = {one.dtype for one in product.tensors()} - {torch.float32}
        assert found == kinds, most


def test_gradient_is_the_transpose(matrix):
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    product = SparseMatrix(matrix, CPU)
    assert torch.autograd.gradcheck(product, x, eps=1e-4, atol=1e-6)


def test_an_empty_row_gives_zero():
    matrix = random_array((4, 5), density=0.0).tocsr()
    assert not SparseMatrix(matrix, CPU)(torch.ones(1, 5, 2)).any()
