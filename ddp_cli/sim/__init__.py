"""A robot that moves: simulator, demonstrators, closed-loop episodes, videos."""
