"""ddp: raw robot demonstrations in, diffusion policies out."""

__version__ = "0.1.0"
