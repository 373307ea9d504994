"""`nenya embed`: two coordinates for each latent (UMAP)."""

from nenya.options.commands import EmbedOptions


def run(options: EmbedOptions) -> int:
    """Do the work; see `nenya.latents.embed.run`."""
    from nenya.latents.embed import run

    return run(options)
