"""Programs that run as they are on real gloo and in the simulator; each times itself."""
