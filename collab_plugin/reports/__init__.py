"""What a plan decided and how good it is, for people: one page, plots, terminal tables."""
