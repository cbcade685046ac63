"""Comparison of tensors by name."""

import torch


def assert_same(one, other):
    """All tensors are equal, bit by bit; other values, such as metadata of a library, are ignored."""
    assert one.keys() == other.keys()
    assert [n for n, v in one.items() if torch.is_tensor(v) and not torch.equal(v, other[n])] == []
