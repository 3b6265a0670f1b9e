"""Balancers: how a caller chooses among the ready endpoints of a service."""

from meshrpc.balancer.balancer import Balancer, Candidate, Picker, create_balancer

__all__ = ["Balancer", "Candidate", "Picker", "create_balancer"]
