"""The synthetic experiment of Sec. 4.1: the bias that minimises each loss on noisy circles."""
