"""Shipped for third parties: tasks, conformance suites, faults and adversaries."""
