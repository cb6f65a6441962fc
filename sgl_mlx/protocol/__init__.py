"""Formats of requests and answers over HTTP."""
