"""Attackers of secure aggregation, shipped so that anybody can check that they fail.

Hazard: everything here does what no honest party does. Tests play an attack twice: against a party whose guard was
taken away, where it must succeed, and against the real one, where it must not.
"""
