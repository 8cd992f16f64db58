"""Series of runs that differ in a setting, and what they say together: scaling laws and what a change is worth."""
