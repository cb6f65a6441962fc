"""Backends that are clients of HTTP servers."""
