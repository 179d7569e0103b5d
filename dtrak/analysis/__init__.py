"""What supports a ranking: significance, stability, decomposition, hubs, comparison."""
