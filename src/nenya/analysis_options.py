"""Options of the commands that explore latents; declared as those of `nenya.options` are."""

from dataclasses import dataclass

from nenya.options import Options, option


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share: `data` names latents files."""

    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")
