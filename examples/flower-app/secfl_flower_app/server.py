"""The coordinator: it adds what it cannot read, and holds nobody's key."""

from secfl.federation.flower import coordinator_app

app = coordinator_app()
