"""What secure aggregation costs on this machine, next to the limits of the machine and to other frameworks.

Every figure is measured when it is asked for; nothing is remembered from another run. Timings are comparable
within one run only.
"""
