"""Primitives that are safe only as their notes say. Use the schemes above instead."""
