"""names of the first nenya: nearest latents; defined in `nenya.tasks`."""

from nenya.tasks import find_closest_latents

__all__ = ["find_closest_latents"]
