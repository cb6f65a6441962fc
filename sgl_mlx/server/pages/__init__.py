"""The live page: one HTML file without a build step, which asks nobody but this server."""
