"""Resumable, distributed training that does not know which model it trains."""
