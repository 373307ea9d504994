"""names of the first nenya: the networks; defined in `nenya.models.named_nets`."""

from nenya.models.named_nets import LinearClassifier, SupCEResNet, SupConResNet

__all__ = ["LinearClassifier", "SupCEResNet", "SupConResNet"]
