"""WHETHER a policy is better: exact ranks, metrics, intervals, reports."""
