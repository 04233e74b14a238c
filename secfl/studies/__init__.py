"""Studies: each a published claim about secfl's own behaviour, measured by one resumable command."""
