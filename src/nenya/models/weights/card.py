"""The words of a folder of weights: what to do to a cutout, step by step, and the model card."""

from collections.abc import Mapping
from typing import Any

from nenya.options.sections import ModelOptions, PreprocessOptions

_MASKED = {
    "nan": "A cutout with a pixel that is not finite has no latent: its latent is NaN.",
    "fill": "Masked pixels (NaN, or the mask's) are filled by the smoothest surface through the clear pixels of the "
    "cutout (nenya.data.fill). A cutout without a clear pixel has no latent.",
    "mean": "Masked pixels (NaN, or the mask's) become the mean of the clear pixels of the cutout. A cutout without a "
    "clear pixel has no latent.",
    "mask": "The mask (1 at masked pixels, which are NaN or the mask's, else 0) is the second channel; the values of "
    "masked pixels are ignored, as the network fills them itself from the clear ones. A cutout without a clear pixel "
    "has no latent.",
}
_FILE = {
    "none": "Nothing is subtracted: cutouts of a file are taken as they were prepared (nenya prepare removes the mean "
    "of each).",
    "demean": "The mean of each cutout is subtracted.",
}
_IMAGE = {"none": "nothing is subtracted", "demean": "its mean is subtracted"}
_LATENT = {
    "projection": "The latent is the output of the projection head, divided by its length (L2).",
    "encoder": "The latent is the pooled output of the encoder, under the projection head; its length is free.",
}


def preprocess_words(model: ModelOptions, preprocess: PreprocessOptions) -> list[str]:
    """Return what is done to a cutout before the network sees it, and to what comes out, a sentence a step."""
    size = f"{model.image_size} x {model.image_size} pixels" if model.image_size else "any size from 8 x 8 pixels"
    own_mean = "The network itself removes the mean of the clear pixels." if model.mask_channel else ""
    channels = "The one channel counts for each of three, as in training." if model.nchannels > 1 else ""
    steps = [
        f"A batch is (n, {2 if model.mask_channel else 1}, H, W), float32, one field a cutout, {size}, in the units of "
        "the training data.",
        _MASKED[preprocess.masked],
        own_mean or _FILE[preprocess.file],
        f"Of a single image given by hand, {_IMAGE[preprocess.image]}.",
        channels,
        _LATENT[model.latent],
        f"DT, if a table has it, is T90 - T10 of the central {preprocess.dt_crop} x {preprocess.dt_crop} pixels.",
    ]
    return [step for step in steps if step]


def model_card(
    model: ModelOptions, preprocess: PreprocessOptions, facts: Mapping[str, Any], training: Mapping[str, Any]
) -> str:
    """Return the model card of a folder, Markdown with YAML in front, as the Hugging Face Hub reads it.

    Args:
        model: the network.
        preprocess: of cutouts.
        facts: `license`, `latent_dim`, `parameters`, `weights_sha256`, `source_sha256`, `nenya_version`.
        training: options of the training, flat; those that are known.
    """
    tags = ["nenya", "oceanography", "sea-surface-temperature", "self-supervised", "embeddings", model.ssl_model]
    front = [
        f"license: {facts['license']}",
        "library_name: nenya",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {_plain(tag)}" for tag in tags),
    ]
    licence = (
        "No licence was given when this folder was written: ask the authors before you publish what you make with it."
        if facts["license"] == "unknown"
        else f"Licence of the weights: {facts['license']}."
    )
    learnt = [(name, training[key]) for key, name in _TRAINING.items() if training.get(key) not in (None, "")]
    lines = [
        *("---", *front, "---", ""),
        f"# {_plain(model.name)}",
        "",
        "A network of [nenya](https://github.com/AI-for-Ocean-Science/nenya): cutouts of ocean fields to latent "
        "vectors. Cutouts with similar patterns have similar latents.",
        "",
        *_table(
            [
                *(("encoder", model.ssl_model), ("parameters", f"{facts['parameters']:,}")),
                *(("latent", f"{facts['latent_dim']} numbers, {model.latent}"), ("channels", model.nchannels)),
                ("mask channel", "yes" if model.mask_channel else "no"),
                ("cutouts", f"{model.image_size} x {model.image_size} pixels" if model.image_size else "any size"),
                ("sha256 of model.safetensors", facts["weights_sha256"]),
                ("exported from weights with sha256", facts["source_sha256"]),
                ("written by", f"nenya {facts['nenya_version']}"),
            ]
        ),
        *("", "## Use", "", "```sh", "nenya extract data=cutouts_preproc.h5 ckpt=hf://OWNER/NAME", "```", ""),
        "with the name of this repository; `ckpt=` takes a local copy of the folder too. Network and preprocessing are "
        "set by `config.json` and `preprocessor.json`.",
        *("", "## What is done to a cutout", ""),
        *(f"{number}. {step}" for number, step in enumerate(preprocess_words(model, preprocess), 1)),
        *(("", "## Training", "", *_table(learnt)) if learnt else ()),
        *("", "## Limits", ""),
        "Latents can be compared only with those of the same weights and preprocessing. The network knows patterns "
        "like those of its training data: of another sensor, resolution or quantity, test it first (`nenya audit`).",
        *("", "## Licence", "", licence, ""),
    ]
    return "\n".join(lines)


_TRAINING = {
    "sensor": "data of",
    "ssl_method": "objective",
    "epochs": "epochs",
    "batch_size_train": "batch",
    "learning_rate": "learning rate",
    "temp": "temperature",
    "augment": "views",
    "clouds": "clouds over the views",
}


def _table(rows: list[tuple[str, Any]]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {_plain(value)} |" for name, value in rows)]


def _plain(value: Any) -> str:
    """Return a value as one line that is neither markup nor the end of a cell."""
    return "".join(c if c.isalnum() or c in " .,:_+/-=()%*" else " " for c in str(value))[:200].strip()
