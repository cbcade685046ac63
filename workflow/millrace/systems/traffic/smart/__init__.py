"""SMART: next-token prediction of traffic (Wu, Feng, Gao & Kan 2024, NeurIPS, arXiv:2405.15677)."""

from millrace.systems.traffic.smart.network import Smart, SmartConfig
from millrace.systems.traffic.smart.spec import SPEC

__all__ = ["SPEC", "Smart", "SmartConfig"]
