"""How likely objects are to be lost: layouts, rates, and three ways to compute the number."""
