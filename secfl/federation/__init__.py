"""Who carries the envelopes: rounds, engines, runs. Start with `secfl.federation.coordinator`."""
