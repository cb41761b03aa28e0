"""Bad input, faults, extremes: what the rest of the tests does not dare to do to the library."""
