"""How fast steps, contours, training and networks are, as ratios within one run: ``python -m benchmarks``.

Each group of measurements is a function that returns rows and targets. It is stored in ``results/speed.json`` as soon
as it is done, with the machine, the commit and the load that it was measured under.
"""
