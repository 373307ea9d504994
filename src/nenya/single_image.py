"""names of the first nenya: views of one image; defined in `nenya.analyze_image`."""

from nenya.analyze_image import ImageDataset, image_loader

__all__ = ["ImageDataset", "image_loader"]
