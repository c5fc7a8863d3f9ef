"""Two ways to fit heads: to the optimum where the loss is convex, and K at once by steps where it is not."""
