"""`saltus tune`: a sweep over options, whose trials are runs of `saltus train`."""
