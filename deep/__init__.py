"""Long checks, run by hand: ``python -m deep.NAME``. Each writes its result to ``results/NAME.json``."""
