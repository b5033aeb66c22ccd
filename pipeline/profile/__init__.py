"""`saltus profile`: where the time of a vector step goes, measured in the loop of `saltus train`."""
