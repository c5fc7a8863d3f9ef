"""Two ways to fit heads: to the optimum where the loss is convex, and K at once by AdamW where it is not."""
