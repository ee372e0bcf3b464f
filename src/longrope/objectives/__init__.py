"""Losses of candidates and their gradients, evaluated in this process, in worker processes or on Ray."""
