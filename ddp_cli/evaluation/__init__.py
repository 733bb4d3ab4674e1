"""Closed-loop episodes: one, many, their statistics, reports and videos."""
