"""Search for factors: spaces, methods, journal."""
