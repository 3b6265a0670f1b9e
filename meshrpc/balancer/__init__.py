"""Balancers: how a caller chooses among the ready endpoints of a service."""

from meshrpc.balancer.balancer import Balancer, Picker, create_balancer
from meshrpc.balancer.candidate import Candidate

__all__ = ["Balancer", "Candidate", "Picker", "create_balancer"]
