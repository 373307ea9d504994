"""names of the first nenya: the options; defined in `nenya.io`."""

from nenya.io import Params, option_preprocess

__all__ = ["Params", "option_preprocess"]
