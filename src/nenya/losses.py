"""names of the first nenya: the loss; defined in `nenya.train_util`."""

from nenya.train_util import SupConLoss

__all__ = ["SupConLoss"]
