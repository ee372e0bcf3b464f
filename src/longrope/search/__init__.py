"""Search for factors: spaces, methods, journal and the search loop. Imports no torch."""
