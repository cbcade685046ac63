"""Clusters as data: their nodes, the placement of jobs, and the requests to the scheduler."""

from millrace.cluster.facts import LAYOUTS, Cluster, cluster_of_job
from millrace.cluster.placement import RESOURCES, NodeType

__all__ = ["LAYOUTS", "RESOURCES", "Cluster", "NodeType", "cluster_of_job"]
