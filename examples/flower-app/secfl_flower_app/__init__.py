"""A federation of clinics with secure aggregation, carried by Flower."""
