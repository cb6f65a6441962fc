"""The watchdog: finds an engine thread that hangs or has died."""
