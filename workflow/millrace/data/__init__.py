"""Readers, validated series, samples in HDF5, and the batches that training draws from them."""
