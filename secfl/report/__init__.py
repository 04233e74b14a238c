"""Pages and tables that people look at: a run's report, a study's page, runs side by side, a run under way.

Nothing in here computes a guarantee: figures come from the run directory, and every ε from the ledger, which is
verified while the page is made.
"""
