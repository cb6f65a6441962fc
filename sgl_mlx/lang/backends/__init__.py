"""Backends that speak to other servers."""
