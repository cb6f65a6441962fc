"""The engine: continuously batched generation with a prefix cache. It never imports `lang`."""
