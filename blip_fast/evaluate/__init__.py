"""How good results are: the measures that papers report."""
