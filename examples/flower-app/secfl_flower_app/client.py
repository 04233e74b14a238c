"""A site: its home, with its key, its images and its journal, is named by the node's configuration."""

from secfl.federation.flower import site_app

app = site_app()
