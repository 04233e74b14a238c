"""Differential privacy on integers: clip, noise, plan, account. NumPy only; accountants load when asked."""
