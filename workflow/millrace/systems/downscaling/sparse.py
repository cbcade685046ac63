"""Constant sparse matrices applied to the rows of a matrix, for layers on irregular grids.

Rows are gathered and summed by `torch.nn.functional.embedding_bag`, which is some nine times faster
than the product of `torch.sparse` on the CPU, and its gradient by the same with the transposed matrix.
"""

from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from millrace.data.device import to_device

MANY = 2**31
"""Places in memory that numbers of 32 bits cannot count: they take half of what larger ones do."""


class SparseMatrix:
    """A constant matrix [R, N] for products with batches.

    Its transpose is made when a gradient is asked for: on a forecast alone it would be wasted.
    """

    def __init__(self, matrix: csr_array, device: torch.device) -> None:
        self.shape = matrix.shape
        self._matrix, self._device = matrix, device
        self._bags = _Bags.of(csr_array(matrix), device)

    @classmethod
    def empty(cls, shape: tuple[int, int], entries: int, device: torch.device) -> "SparseMatrix":
        """A matrix of so many entries and its transpose without content, where only sizes count."""
        made = cls.__new__(cls)
        made.shape = shape
        made._bags, made.transposed = (
            _Bags(
                columns,
                torch.empty(entries, dtype=torch.int32, device=device),
                torch.empty(rows + 1, dtype=torch.int32, device=device),
                torch.empty(entries, device=device),
            )
            for rows, columns in (shape, shape[::-1])
        )
        return made

    @cached_property
    def transposed(self) -> "_Bags":
        """What its gradient is computed with."""
        return _Bags.of(csr_array(self._matrix.T), self._device)

    def tensors(self) -> list[Tensor]:
        """What it holds."""
        made = [self._bags, *([self.transposed] if "transposed" in self.__dict__ else [])]
        return [tensor for bags in made for tensor in bags.tensors()]

    def __call__(self, x_BNC: Tensor) -> Tensor:
        """Multiply each sample, [B, R, C]."""
        if torch.compiler.is_exporting():  # of any number of samples: side by side
            side_by_side = self.sum(x_BNC.transpose(0, 1).flatten(1), 1)
            return side_by_side.unflatten(1, (x_BNC.shape[0], -1)).transpose(0, 1)
        rows = x_BNC.flatten(0, 1)
        product: Tensor = _Product.apply(rows, self, len(x_BNC))
        return product.unflatten(0, (len(x_BNC), self.shape[0]))

    def sum(self, rows: Tensor, n_samples: int) -> Tensor:
        """Multiply the rows of so many samples, which follow each other."""
        return self._bags.sum(rows, n_samples)


class _Bags:
    """A matrix as bags of columns, repeated for the samples of a batch."""

    def __init__(self, columns: int, index: Tensor, start: Tensor, weight: Tensor) -> None:
        self._columns, self._index, self._start, self._weight = columns, index, start, weight
        self._of_batch: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, matrix: csr_array, device: torch.device) -> "_Bags":
        """Bags on a device; on the CPU those of a matrix in single precision are no copies."""
        counted = np.int32 if max(matrix.nnz, *matrix.shape) < MANY else np.int64
        index, start, weight = (
            to_device(values, device, kind)
            for values, kind in (
                (matrix.indices, counted),
                (matrix.indptr, counted),
                (matrix.data, np.float32),
            )
        )
        return cls(matrix.shape[1], index, start, weight)

    def tensors(self) -> list[Tensor]:
        of_batches = [tensor for three in self._of_batch.values() for tensor in three]
        return [self._index, self._start, self._weight, *of_batches]

    def sum(self, rows: Tensor, n_samples: int) -> Tensor:
        index, start, weight = self._repeated(n_samples)
        weight = weight.to(rows.dtype)
        return embedding_bag(index, rows, start, mode="sum", per_sample_weights=weight)

    def _repeated(self, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Columns, begins and weights of the bags of all samples."""
        if n_samples == 1:
            return self._index, self._start[:-1], self._weight
        made = self._of_batch.get(n_samples)
        if made is None:
            is_large = n_samples * max(self._columns, len(self._index)) >= MANY
            index, start = (
                one.long() if is_large else one for one in (self._index, self._start[:-1])
            )
            sample = torch.arange(n_samples, dtype=index.dtype, device=index.device)[:, None]
            made = (
                (index + sample * self._columns).flatten(),
                (start + sample * len(index)).flatten(),
                self._weight.repeat(n_samples),
            )
            if not torch.compiler.is_compiling():  # where it would split the graph
                self._of_batch[n_samples] = made
        return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, matrix, n_samples):  # type: ignore[no-untyped-def]
        ctx.matrix, ctx.n_samples = matrix, n_samples
        return matrix.sum(rows.contiguous(), n_samples)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return ctx.matrix.transposed.sum(gradient.contiguous(), ctx.n_samples), None, None


# Matrices are counted where the memory of a batch is.
torch.utils._pytree.register_pytree_node(
    SparseMatrix, lambda matrix: (matrix.tensors(), matrix), lambda _, matrix: matrix
)
