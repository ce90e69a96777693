"""Several models served as one, ULD and its relatives; no file here imports anything of UnlearnKit."""
