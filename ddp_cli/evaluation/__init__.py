"""Closed-loop evaluation: rollouts, statistics, reports, recorded episodes."""
