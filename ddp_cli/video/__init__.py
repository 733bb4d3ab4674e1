"""Video files, and what is drawn over their frames."""
