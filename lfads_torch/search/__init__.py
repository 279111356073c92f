"""Search for hyper-parameters: rules in plain NumPy, and the back-ends that train by them.

`space` (what is searched), `rules` (who copies whom, who stops) and `history` (what happened) are
shared by the population trained in one process and by Ray Tune.
"""
