"""SMART: next-token prediction of traffic (Wu, Feng, Gao & Kan 2024, NeurIPS, arXiv:2405.15677)."""
