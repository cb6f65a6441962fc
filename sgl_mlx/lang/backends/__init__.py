"""Backends over HTTP."""
