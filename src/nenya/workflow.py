"""names of the first nenya: the tasks of a study; defined in `nenya.tasks`."""

from nenya.tasks import chk_latents, evaluate, find_eigenmatches, find_eigenmodes, return_task, train

__all__ = ["chk_latents", "evaluate", "find_eigenmatches", "find_eigenmodes", "return_task", "train"]
