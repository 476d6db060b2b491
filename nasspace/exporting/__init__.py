"""A folder to ship, and its verification."""
