"""Collectives, sharding and processes of one machine."""
