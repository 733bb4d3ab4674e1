"""Video files and overlays."""
