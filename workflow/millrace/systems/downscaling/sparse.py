"""Constant sparse matrices applied to the rows of a matrix, for layers on irregular grids.

Rows are gathered and summed by `torch.nn.functional.embedding_bag`, which is some nine times faster
than the product of `torch.sparse` on the CPU, and its gradient by the same with the transposed matrix.
"""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag


class SparseMatrix:
    """A constant matrix [R, N] for products with batches."""

    def __init__(self, matrix: csr_array, device: torch.device) -> None:
        self.shape = matrix.shape
        self._bags = tuple(_Bags.of(csr_array(one), device) for one in (matrix, matrix.T))

    @classmethod
    def empty(cls, shape: tuple[int, int], entries: int, device: torch.device) -> "SparseMatrix":
        """A matrix of so many entries without content, where only sizes count."""
        made = cls.__new__(cls)
        made.shape = shape
        made._bags = tuple(
            _Bags(
                columns,
                torch.empty(entries, dtype=torch.int64, device=device),
                torch.empty(rows + 1, dtype=torch.int64, device=device),
                torch.empty(entries, device=device),
            )
            for rows, columns in (shape, shape[::-1])
        )
        return made

    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [tensor for bags in self._bags for tensor in bags.tensors()]

    def __call__(self, x_BNC: Tensor) -> Tensor:
        """Multiply each sample, [B, R, C]."""
        rows = x_BNC.flatten(0, 1)
        product: Tensor = _Product.apply(rows, *self._bags, len(x_BNC))
        return product.unflatten(0, (len(x_BNC), self.shape[0]))


class _Bags:
    """A matrix as bags of columns, repeated for the samples of a batch."""

    def __init__(self, columns: int, index: Tensor, start: Tensor, weight: Tensor) -> None:
        self._columns, self._index, self._start, self._weight = columns, index, start, weight
        self._of_batch: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, matrix: csr_array, device: torch.device) -> "_Bags":
        index, start, weight = (
            torch.from_numpy(values.astype(kind)).to(device)
            for values, kind in (
                (matrix.indices, np.int64),
                (matrix.indptr, np.int64),
                (matrix.data, np.float32),
            )
        )
        return cls(matrix.shape[1], index, start, weight)

    def tensors(self) -> list[Tensor]:
        of_batches = [tensor for three in self._of_batch.values() for tensor in three]
        return [self._index, self._start, self._weight, *of_batches]

    def sum(self, rows: Tensor, n_samples: int) -> Tensor:
        if n_samples not in self._of_batch:
            sample = torch.arange(n_samples, device=self._index.device)[:, None]
            self._of_batch[n_samples] = (
                (self._index + sample * self._columns).flatten(),
                (self._start[:-1] + sample * len(self._index)).flatten(),
                self._weight.repeat(n_samples),
            )
        index, start, weight = self._of_batch[n_samples]
        weight = weight.to(rows.dtype)
        return embedding_bag(index, rows, start, mode="sum", per_sample_weights=weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, forward, backward, n_samples):  # type: ignore[no-untyped-def]
        ctx.bags, ctx.n_samples = backward, n_samples
        return forward.sum(rows.contiguous(), n_samples)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return ctx.bags.sum(gradient.contiguous(), ctx.n_samples), None, None, None


# Matrices are counted where the memory of a batch is.
torch.utils._pytree.register_pytree_node(
    SparseMatrix, lambda matrix: (matrix.tensors(), matrix), lambda _, matrix: matrix
)
