"""`nenya train`: train a model on cutouts."""

from nenya.options.commands import TrainOptions


def run(options: TrainOptions) -> int:
    """Do the work; see `nenya.train.run`."""
    from nenya.train import run

    return run(options)
