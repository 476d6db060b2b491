"""Search: what to try, what it scored, the record of it, and the loop around them."""
