"""Who does the work: local processes or Ray, by how many threads, in how much memory."""
