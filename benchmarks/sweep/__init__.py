"""Does a sweep find what is there, and only that? Two engines that are one, and one that is slowed."""
