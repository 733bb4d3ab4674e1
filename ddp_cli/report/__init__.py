"""Pages that show a dataset, training runs, evaluations or a policy: one HTML file that opens without a network."""
