"""Starts torchrun's agents, watches them, stops them, and leaves nothing behind.

The only package here that starts server processes. A run is held by a guard process (guard.py), so
that it ends when whoever launched it ends, however that happens.
"""
