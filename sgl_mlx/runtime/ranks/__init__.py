"""One model over several processes or Macs, which `mlx.launch` starts: the ranks."""
