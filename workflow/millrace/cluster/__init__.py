"""Clusters as data: what nodes they have, what a job gets there, and how it is asked for."""

from millrace.cluster.facts import LAYOUTS, Cluster, cluster_of_job
from millrace.cluster.nodes import Needs, NodeType
from millrace.cluster.placement import RESOURCES, Placement

__all__ = ["LAYOUTS", "RESOURCES", "Cluster", "Needs", "NodeType", "Placement", "cluster_of_job"]
