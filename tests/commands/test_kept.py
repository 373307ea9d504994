"""Options of a command are the same whether its config files are read or were kept from the command before."""

import pytest

from nenya.commands import compose as composing
from nenya.commands import kept
from nenya.errors import OptionError

CALLS = {
    "extract": [
        ["model=demo", "data=[a.h5,b.h5]", "loader.batch_size_valid=8"],
        ["model=demo", "trainer.accelerator=cpu", "data=it's here.h5", "clobber=true"],
        ["data=x.h5", "trainer=cpu", "model=v5", "loader.num_workers=1", "ckpt=null"],
    ],
    "train": [["model=demo", "trainer=cpu", "logger=none", "seed=3", "seed=4", "data=a.h5", "out=run"]],
    "prepare": [["sensor=modis", "data=days", "field_size=32"], ["sensor=grid", "data=days", "variable=sst"]],
    "statistics": [["table=a.parquet", "where='lat > 0 and DT < 2'", "out=s.csv"]],
}
REFUSED = [
    ["model=demo", "seed=x"],
    ["seed=1,2"],
    ["clobber=maybe"],
    ["loader.batch_size_valid=[1]"],
    ["seed=1.5"],
]


def options_or_words(name, args):
    try:
        return composing.compose(name, args)
    except OptionError as error:
        return str(error)


@pytest.mark.parametrize("name", CALLS)
def test_kept_configs_give_the_options_of_fresh_ones(monkeypatch, name):
    monkeypatch.setattr(kept, "_KEPT", {})
    read = []
    hydra = composing._hydra
    monkeypatch.setattr(composing, "_hydra", lambda command: (read.append(command), hydra(command))[1])
    again = [composing.compose(name, args) for args in CALLS[name] * 2]
    assert len(read) == len(kept._KEPT) < len(again)
    monkeypatch.setattr(composing, "composed", lambda _command, overrides, _groups, compose: compose(overrides))
    assert again == [composing.compose(name, args) for args in CALLS[name] * 2]


@pytest.mark.parametrize("args", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(monkeypatch, args):
    assert composing.compose("extract", ["model=demo", "data=a.h5"])
    found = options_or_words("extract", args)
    monkeypatch.setattr(composing, "composed", lambda _command, overrides, _groups, compose: compose(overrides))
    assert isinstance(found, str) and found == options_or_words("extract", args)
    assert composing.compose("extract", []).seed == composing.compose("extract", ["model=v5"]).seed
