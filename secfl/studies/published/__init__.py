"""The published systems, each one command: measured again here, beside what was published."""
